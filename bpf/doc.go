// Package bpf owns what the agent leaves in the kernel: the maps of package
// layout, the socket-level load-balancing programs of clustermesh.bpf.c and the
// links that attach them to a cgroup.
//
// Everything is pinned in one private directory of a bpffs, so that it outlives
// the process: a stopped, crashed or replaced agent moves no connection. Load
// finds what is there, takes it over without touching a live entry and replaces
// the programs by one atomic link update each. Only Cleanup removes anything.
//
// How one of a set's backends is chosen (by chance, by weight, by who asks) is in
// select.h and sticky.h, which socket and packet programs share.
//
// The large maps are memory-mapped. A set of backends is written by plain
// stores to a part of the slab that nothing refers to and becomes visible by one
// atomic store of the frontend's header word; before that part is written again,
// WaitRCU has to pass, so that no program still reads it.
package bpf
