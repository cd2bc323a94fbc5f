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
	// MaxDecodedBytes bounds what a compressed value may grow to; more than
	// 16 MiB, Cilium's limit, has no effect. A value may also grow to at most 40
	// times its size, or 256 KiB if that is more: an endpoint slice as large as
	// Kubernetes' controllers make them stays below both.
	MaxDecodedBytes int
	// MaxBackends bounds the addresses of a service's backends, host names and
	// zones, each, and the endpoints and addresses of an endpoint slice. A slice's
	// zone hints together are bounded by eight for each.
	MaxBackends int
	// MaxFrontends bounds the cluster IPs of a service.
	MaxFrontends int
	// MaxPorts bounds the ports of one address, endpoint slice or export.
	MaxPorts int
	// MaxNames bounds every other map or list: labels, annotations, selectors,
	// zone hints, named ports, the addresses of a node.
	MaxNames int
}

// DefaultLimits returns limits no real service has been seen to reach.
func DefaultLimits() Limits {
	return Limits{
		MaxValueBytes:   1 << 20,
		MaxDecodedBytes: maxSliceBytes,
		MaxBackends:     5000,
		MaxFrontends:    64,
		MaxPorts:        1024,
		MaxNames:        1024,
	}
}
