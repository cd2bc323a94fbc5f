// Package e2e holds the end-to-end tests: two real Kubernetes control planes,
// the shipped binaries, a real kernel and real traffic between network
// namespaces, and an oracle that says what every node's maps must hold.
//
// The tests need root, cgroup v2, bpffs and the binaries that `make e2e`
// builds. Where one of these is missing they skip with the list of what is
// missing, except with CI set to true, where they fail.
//
// Everything runs inside PID, mount and network namespaces of its own, so an
// aborted run leaves nothing on the machine but a few empty cgroups, which the
// next run removes.
package e2e
