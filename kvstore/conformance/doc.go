// Package conformance checks, against any etcd endpoint, what the clients of
// Cilium ClusterMesh v1.20 rely on before they accept a remote cluster and while
// they follow it: the network, TLS in both directions, what a reader may and may
// not do, paging and watches, the heartbeat, the cluster's announcement, its
// canaries, and every entry it publishes.
//
// The checks are one table ([Checks]). A check knows what a client does when it
// is not met, what an operator can do about it, and which other checks it builds
// on: it is skipped when one of those did not pass, so that one fault is one
// failure. [Run] only reads. The requests of [Options].ProbeWrites are writes
// that have no effect even where they are allowed.
//
// A run goes on behind a certificate that does not verify, because it is to
// tell everything that is wrong at once; it trusts nothing that it reads.
package conformance
