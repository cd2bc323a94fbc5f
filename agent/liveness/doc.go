// Package liveness judges whether a remote cluster is dead: whether new
// connections should leave it for clusters that answer. It also says how far
// clusters are.
//
// Two things are judged apart. The control link is the connection to the
// cluster's apiserver; the data path is whether its backends answer probes.
// One of them alone never makes a cluster dead: an apiserver that is gone says
// nothing about backends, and backends that do not answer us may still serve
// others whose apiserver calls them ready. A cluster is dead while both are
// lost, and stops being so once one of them is back.
//
// Nodes of the cluster may be probed beside its backends. They tell backends that
// are down from a network that is, and stand for backends only where none ever
// answered. From the times of answers comes a damped distance of each cluster,
// and from these an [Order] of clusters.
//
// Time is counted in rounds, which the owner calls at a steady pace. A process
// that was stopped or starved misses rounds instead of seeing long silences,
// so its own stalls cannot look like another's death.
//
// The package is pure: it says how many probes to send and what the answers
// mean, package probe sends them. A Judge or Sample is not safe for concurrent
// use.
package liveness
