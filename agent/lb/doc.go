// Package lb decides which backends each frontend of a global service uses,
// and with which share of the new connections.
//
// [Merge] takes everything known of one service and returns, per frontend, all
// backends that could answer for it, each with the decision and its reason.
// The rules are those of Cilium ClusterMesh v1.20 (service affinity, port name
// matching) joined with the rules of Kubernetes for terminating endpoints,
// internal traffic policy and traffic distribution, so that a service behaves
// the same whichever of the programs its traffic. A [Policy] goes beyond them:
// tiers of clusters, weights, spillover from one tier to the next, and what
// becomes of clusters out of contact. Cilium's affinities are special cases of
// it.
//
// [Alias] and [Maglev] turn a table's weights into what a program in the kernel
// picks from in constant time.
//
// The package is pure: the result depends on the set of inputs only, not on
// their order, and functions are safe for concurrent use. What has to be
// remembered from one decision to the next, the hysteresis of a spillover, is
// an explicit input, see [Remember].
package lb
