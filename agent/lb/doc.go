// Package lb decides which backends each frontend of a global service uses.
//
// [Merge] takes everything known of one service and returns, per frontend, all
// backends that could answer for it, each with the decision and its reason.
// The rules are those of Cilium ClusterMesh v1.20 (service affinity, port name
// matching) joined with the rules of Kubernetes for terminating endpoints, so
// that a service behaves the same whichever of the two programs its traffic.
//
// The package is pure: the result depends on the set of inputs only, not on
// their order, and functions are safe for concurrent use.
package lb
