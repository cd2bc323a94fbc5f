// Package mesh is what an agent knows of all clusters: their services, their
// backends, and how far each cluster can be trusted to be complete.
//
// [Mesh] takes the records of the watches and returns, per service, what
// package lb needs. It keeps these promises:
//
//   - Path independence: the content depends on the latest value of every key,
//     not on order, duplicates, batches or reconnects. A value that is refused
//     counts as if its key did not exist.
//   - No early prune: content restored after a restart stays until its cluster
//     is synced or removed; content of a cluster that is out of contact stays
//     without any timer.
//   - One source: a remote cluster is read from its endpoint slices where it
//     announces them, else from its service records, never from both; what was
//     read from the one stays until the other is synced.
//   - Isolation: what one cluster sends changes no other cluster's content. A
//     remote cluster only adds backends to services that the local cluster
//     has; it never adds frontends or policy, never touches the protected
//     services, and never names an address that means something else here: one
//     of the deny list, of our nodes and pods, of another cluster's ranges, or
//     outside its own where the operator listed them.
//   - The operator's word counts at once: what a new policy or a range that
//     turns out to be ours does not accept leaves with the call; what may be
//     accepted again is asked for.
//
// One thing is kept on purpose although a cluster withdrew it: what a cluster
// with a brake withdraws all at once, see [Mesh.Release]. Without a brake, and
// once everything is released, the content is as promised above.
//
// How a service is balanced is for the own cluster's record to say: its affinity
// and annotations, whether it keeps to a node or a zone, whether clients stay
// with a backend. What these refer to is told as it becomes known: the node by
// [Config], its zone by [Mesh.SetZone], ages of lost contact by [Mesh.SetLost].
// Over a restart what [Restored] has is remembered of all this; the rest is
// unknown until the own cluster has spoken.
//
// The package is pure: no clock, network, logging or goroutine. A Mesh is not
// safe for concurrent use; its owner serialises calls.
package mesh
