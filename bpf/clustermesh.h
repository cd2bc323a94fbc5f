/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The memory layout of the maps. bpf/layout holds the same structs for Go; a
 * test compares every size and offset of the two through this object's BTF.
 *
 * Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d, in the order of the wire.
 * Ports are in the order of the wire. Everything else is in host order. */
#ifndef CLUSTERMESH_H
#define CLUSTERMESH_H

#include <linux/types.h>

/* CM_LAYOUT grows with every change that an older reader would misread. */
#define CM_LAYOUT 1

struct cm_frontend_key {
	__u32 addr[4];
	__u16 port;
	__u8 proto;
	__u8 scope;
};

struct cm_backend {
	__u32 addr[4];
	__u16 port;
	__u16 cluster;
	__u32 frontend;
	__u8 state;
	__u8 flags;
	__u8 pad[6];
};

struct cm_region {
	__u32 total;
	__u32 frontend;
	__u8 affinity;
	__u8 pad[23];
};

struct cm_meta {
	char service_namespace[64];
	char name[64];
	char port_name[64];
	struct cm_frontend_key key;
	__u8 pad[4];
};

struct cm_cluster {
	__u32 state;
	__u32 pad;
	char name[40];
};

#define CM_CLUSTER_WITHDRAWN 2

/* cm_info says what the pinned maps are, for the next life of the agent. */
struct cm_info {
	__u32 layout;
	__u32 pad;
};

/* cm_endpoint is an address and a port, as a socket call names them. */
struct cm_endpoint {
	__u32 addr[4];
	__u16 port;
	__u16 pad;
};

/* cm_peer is kept with a socket: what its connect() asked for and what it got.
 * It is all zero for a socket that only ever sent unconnected datagrams to a
 * frontend; its existence then says that cm_reverse may know the socket. */
struct cm_peer {
	struct cm_endpoint frontend;
	struct cm_endpoint backend;
};

/* cm_reverse_key finds the frontend that an unconnected UDP socket meant when
 * a datagram from a backend comes back. */
struct cm_reverse_key {
	__u64 cookie;
	struct cm_endpoint backend;
	__u32 pad;
};

struct cm_counters {
	__u64 hits;
	__u64 misses;
	__u64 refused;
	__u64 retries;
	__u64 forgotten;
};

#endif
