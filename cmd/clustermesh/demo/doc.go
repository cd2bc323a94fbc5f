// Package demo runs a whole mesh of two clusters on one Linux machine and shows
// what it does: requests answered by both clusters, a control plane killed
// without a request lost, backends withdrawn.
//
// Each cluster is one node: a network namespace with the pods' addresses on it,
// a cgroup for the pods, a private mount namespace with an own bpf file system,
// a clustermesh-apiserver that reads manifests from a directory, and a
// clustermesh-agent. The nodes are joined by a bridge in a third network
// namespace. No namespace has a name, every process is told to die with the
// demo, and mounts live in the nodes' mount namespaces only, so the kernel
// cleans up even when the demo itself is killed; empty cgroups and a temporary
// directory are all that can be left behind then.
package demo
