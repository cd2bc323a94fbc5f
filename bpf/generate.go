package bpf

// The compiled programs are committed, so that a build needs no clang. The
// include paths are those of the two architectures that Debian and Ubuntu
// builders have; the object is the same from either.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -target bpfel -go-package bpf -type cm_event clustermesh clustermesh.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -I. -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
