package schema

// Source is the connection an entry came from, as our own configuration and
// the cluster's announcement describe it; what an entry says about itself must
// agree with it.
type Source struct {
	Cluster   string // the configured name
	ClusterID uint32 // the announced and accepted id
	Cached    bool   // read below a relay's cilium/cache prefixes
}

// Limits bound what a decoder accepts of one entry. The bound on bytes is
// checked before anything is parsed; decoded strings are never longer than
// their encoding, so it bounds them as well. The zero Limits accept nothing:
// start from [DefaultLimits].
type Limits struct {
	// MaxValueBytes bounds a value. etcd itself stops at 1.5 MiB per request;
	// 1 MiB holds a service of 6,000 backends with two ports and a zone each.
	MaxValueBytes int
	// MaxBackends bounds the addresses of a service's backends, host names and
	// zones, each.
	MaxBackends int
	// MaxFrontends bounds the cluster IPs of a service.
	MaxFrontends int
	// MaxPorts bounds the ports of one address.
	MaxPorts int
	// MaxNames bounds every other map or list: labels, annotations, selectors,
	// zone hints, named ports, the addresses of a node.
	MaxNames int
}

// DefaultLimits returns limits no real service has been seen to reach.
func DefaultLimits() Limits {
	return Limits{
		MaxValueBytes: 1 << 20,
		MaxBackends:   5000,
		MaxFrontends:  64,
		MaxPorts:      1024,
		MaxNames:      1024,
	}
}
