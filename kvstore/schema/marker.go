package schema

import (
	"strconv"
	"strings"
)

// markerRoot lies above the markers of all clusters.
const markerRoot = LocalPrefix + "markers/"

// maxMarkerBytes bounds a marker; today's have 120 bytes.
const maxMarkerBytes = 1 << 10

// MarkerPrefix returns the prefix of what a cluster says about its own history.
// Remote clusters' agents may read it, as the only one below [LocalPrefix].
func MarkerPrefix(cluster string) string { return markerRoot + cluster + "/" }

// MarkerKey returns the key of a cluster's [Marker].
func MarkerKey(cluster string) string { return MarkerPrefix(cluster) + "v1" }

// IsMarkerKey reports whether a key is that of any cluster's [Marker].
func IsMarkerKey(key string) bool { return strings.HasPrefix(key, markerRoot) }

// Stamp is a point in a cluster's history: all that its source had said at
// Micros, microseconds since 1970 by the exporter's clock, made to only grow
// within an incarnation, which is one life of the store.
type Stamp struct {
	Micros      int64
	Incarnation uint64
}

// Marker stands in a cluster's store behind everything that the cluster had to
// say at Stamp. Begun is the first stamp of the same incarnation: everything had
// been read anew from the source by then. Asked says that somebody waits for it
// to be acknowledged.
type Marker struct {
	Stamp
	Begun int64
	Asked bool
}

// Covers reports whether whoever has applied m has applied all that stands
// before s. A life of the store that was complete only after s includes it; one
// that began before may be behind.
func (m Marker) Covers(s Stamp) bool {
	if m.Incarnation == s.Incarnation {
		return m.Micros >= s.Micros
	}
	return m.Begun > s.Micros
}

// String is the stamp as people hand it on.
func (s Stamp) String() string {
	return strconv.FormatInt(s.Micros, 10) + "-" + strconv.FormatUint(s.Incarnation, 16)
}

// ParseStamp reads what [Stamp.String] made. The error is an *[Error].
func ParseStamp(text string) (Stamp, error) {
	micros, incarnation, ok := strings.Cut(text, "-")
	m, err1 := strconv.ParseInt(micros, 10, 64)
	i, err2 := strconv.ParseUint(incarnation, 16, 64)
	s := Stamp{Micros: m, Incarnation: i}
	if !ok || err1 != nil || err2 != nil || m <= 0 || s.String() != text {
		return Stamp{}, newError("", "stamp", text, "give it as clustermesh status --wait prints it, such as 1764452000123456-9f2c41d07be6a8f3")
	}
	return s, nil
}

// Encode returns the record's value.
func (m Marker) Encode() []byte {
	return marshal(struct {
		Incarnation string `json:"incarnation"`
		Stamp       int64  `json:"stamp"`
		Begun       int64  `json:"begun"`
		Asked       bool   `json:"asked,omitempty"`
	}{strconv.FormatUint(m.Incarnation, 16), m.Micros, m.Begun, m.Asked})
}

// maxMicros is the largest stamp, some 280 years from 1970: a number that JSON
// readers of any language hold exactly.
const maxMicros = 1<<53 - 1

// DecodeMarker decodes the value at [MarkerKey](cluster). The error is an
// *[Error].
func DecodeMarker(cluster string, value []byte) (Marker, error) {
	d := newReader(MarkerKey(cluster), value, maxMarkerBytes)
	var m Marker
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "incarnation":
			d.once(&have, 0)
			m.Incarnation = d.hex()
		case "stamp":
			d.once(&have, 1)
			m.Micros = int64(d.uint(maxMicros))
		case "begun":
			d.once(&have, 2)
			m.Begun = int64(d.uint(maxMicros))
		case "asked":
			d.once(&have, 3)
			m.Asked = d.flag()
		default:
			d.skip()
		}
	}
	d.require(have, "incarnation", "stamp", "begun")
	if m.Begun > m.Micros {
		d.failAt("begun", strconv.FormatInt(m.Begun, 10), "must not be after the stamp")
	}
	if err := d.result(); err != nil {
		return Marker{}, err
	}
	return m, nil
}

// hex reads a number in hexadecimal digits.
func (r *reader) hex() uint64 {
	text := r.text()
	n, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || strconv.FormatUint(n, 16) != string(text) {
		r.fail(excerpt(text), "must be a number in hexadecimal digits")
	}
	return n
}
