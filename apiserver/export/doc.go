// Package export turns a cluster's Kubernetes objects into the records that
// the cluster publishes: which services, nodes, pod addresses and identities
// others may see, and what the cluster's own agents need besides.
//
// It is pure: changes of objects go in, changes of records come out. What is
// published depends on the objects alone, not on the order in which they were
// heard; the one exception is the numbers of identities, which the caller's
// [Identities] decides. The rules are those of Cilium v1.20's exporter, so
// that its agents read the same from us as from a Cilium cluster, except where
// a comment says why not.
package export
