package schema

// require refuses an object that lacks one of its first members: names are in
// the order of their numbers in have.
func (r *reader) require(have seen, names ...string) {
	for i, name := range names {
		if have&(1<<i) == 0 {
			r.missing(name)
		}
	}
}

func (r *reader) missing(name string) {
	if r.err == nil {
		field := r.field()
		if field == wholeValue {
			field = name
		} else {
			field += "/" + name
		}
		r.err = newError(r.key, field, "", "the member is missing")
	}
}

// room refuses a list element when the list already holds limit.
func (r *reader) room(n, limit int) {
	if n >= limit {
		r.fail("", "the list may hold at most "+decimal(uint32(limit))+" entries")
	}
}

// clusterID reads the id a record claims, which must be the announced one.
func (r *reader) clusterID(src Source) uint32 {
	id := uint32(r.uint(1<<32 - 1))
	if id != src.ClusterID {
		r.fail(decimal(id), "must be "+decimal(src.ClusterID)+", the id that cluster "+src.Cluster+" announces")
	}
	return id
}

// protocol reads a layer 4 protocol, upper case as on the wire.
func (r *reader) protocol() Protocol {
	text := r.text()
	for _, p := range [...]Protocol{TCP, UDP, SCTP} {
		if string(p) == string(text) {
			return p
		}
	}
	r.fail(excerpt(text), "must be TCP, UDP or SCTP")
	return ""
}

// port reads a port number; nothing listens on 0.
func (r *reader) port() uint16 {
	n := r.uint(1<<16 - 1)
	if n == 0 {
		r.fail("0", "must be a port from 1 to 65535")
	}
	return uint16(n)
}
