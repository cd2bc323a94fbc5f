// Package server is a cluster's exported key-value store: an embedded etcd
// that only the process itself writes, and a read-only gateway in front of it
// that other clusters and the cluster's own agents read from.
//
// # The store
//
// The etcd inside is a complete one (raft log, multi-version store), but it
// has no listener of its own, neither for clients nor for peers: it is reached
// by function calls only. Its content is derived data. Every life starts with
// an empty directory and a random cluster token, thus with a new etcd cluster
// id, so that readers notice that revisions begin again; nothing is synced to
// disk. When it dies (disk full, quota reached, I/O error) [Server.Run] returns
// an error and the owner starts a new life and publishes again.
//
// # The gateway
//
// The gateway speaks the part of the etcd v3 API that a reader needs: Range,
// Watch, Status and the gRPC health service. Nothing else is registered but
// own agents' reports; an
// etcd that is reached through access control instead still lets a reader make
// leases and transactions. A request is never passed on: it is parsed into one
// key range, which must lie wholly inside a range that the peer's certificate
// grants, and a new request is made from it.
//
// # Watches
//
// One watch on etcd feeds a ring of the newest revisions. Each event is encoded
// once into the bytes of its place in a WatchResponse; every subscriber has a
// cursor in the ring and sends slices of these bytes. A subscriber costs etcd
// nothing, cannot delay another, and is told to list again (etcd's
// compact_revision) when it falls behind the ring.
package server
