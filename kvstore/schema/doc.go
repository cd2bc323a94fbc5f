// Package schema is the wire contract of the mesh: which keys a cluster
// publishes, what their values look like, and what a reader accepts.
//
// It is the only package that knows how a key is spelled. The format is the
// one Cilium ClusterMesh v1.20 uses below cilium/, so that its agents can read
// what we publish and we can read what its clustermesh-apiserver publishes;
// below clustermesh/ lie records of our own that only a cluster's own agents
// may read.
//
// Everything here is pure: encoding and decoding of bytes, without clock,
// network or logging. Decoders treat their input as hostile: they bound it
// before they parse it, ignore members they do not know, and are strict on
// those they use. Names that come out of them are printable ASCII without
// spaces; labels, annotations and metadata are any valid UTF-8, so whoever
// prints those must quote them. Values are plain data that the caller owns.
// Functions are safe for concurrent use; a [SliceCodec], which keeps buffers, is
// for one goroutine at a time.
package schema
