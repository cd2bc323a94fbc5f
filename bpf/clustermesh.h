/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The memory layout of the maps. bpf/layout holds the same structs for Go; a
 * test compares every size and offset of the two through this object's BTF.
 *
 * Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d, in the order of the wire.
 * Ports are in the order of the wire. Everything else is in host order. */
#ifndef CLUSTERMESH_H
#define CLUSTERMESH_H

#include <linux/types.h>

/* CM_LAYOUT grows with every change that an older reader would misread. Version 2
 * has flags in the headers, and tables behind the backends; maps without either
 * are still of version 1, and bytes that version 1 left zero mean what it did. */
#define CM_LAYOUT 2

/* The header of a frontend: 6 bits of flags, 26 of offset, 16 of how many records
 * are selected, 16 of generation. */
#define CM_HEADER_STICKY (1ULL << 63) /* clients come back to their backend */
#define CM_HEADER_CONSISTENT (1ULL << 62) /* a table says who goes where */
#define CM_HEADER_FLAGS 58
#define CM_OFFSET_MASK ((1U << 26) - 1)

struct cm_frontend_key {
	__u32 addr[4];
	__u16 port;
	__u8 proto;
	__u8 scope;
};

/* Whose a frontend is. One for all may have another in its place for packets of
 * clients outside. */
#define CM_SCOPE_ANY 0
#define CM_SCOPE_OUTSIDE 1
#define CM_SCOPE_HOST 2 /* sockets of the node's own network namespace */

/* cm_backend is one backend and one slot of an alias table: a draw that is not
 * below the threshold goes to the selected record that is alias places further,
 * modulo 2^16. An alias of 0 keeps every draw, so a set without weights is zero
 * here. */
struct cm_backend {
	__u32 addr[4];
	__u16 port;
	__u16 cluster;
	__u32 frontend;
	__u8 state;
	__u8 flags;
	__u16 alias;
	__u32 threshold;
};

/* cm_region is the record before the first backend. After the last backend come
 * the slots of a table, if any: indices of selected records, 16 to a record. */
struct cm_region {
	__u32 total;
	__u32 frontend;
	__u8 affinity;
	__u8 on_withdraw;
	__u8 pad[2];
	__u32 sticky; /* seconds that a client keeps its backend */
	__u32 slots;
	__u32 drain; /* seconds that connections to withdrawn backends have */
	__u8 rest[8];
};

#define CM_TABLE_SLOTS 16

struct cm_table {
	__u16 slot[CM_TABLE_SLOTS];
};

struct cm_meta {
	char service_namespace[64];
	char name[64];
	char port_name[64];
	struct cm_frontend_key key;
	__u8 kind;
	__u8 pad[3];
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

/* cm_affinity_key is a client of a frontend: for a socket its network namespace,
 * for a packet its source address. */
struct cm_affinity_key {
	__u64 client[2];
	__u32 frontend;
	__u32 kind;
};

#define CM_CLIENT_NETNS 1
#define CM_CLIENT_ADDRESS 2

/* cm_affinity is the backend that the client has: its address, not its record,
 * because records move. slot is where in the selected run it was seen last. */
struct cm_affinity {
	struct cm_endpoint backend;
	__u32 slot;
	__u32 used; /* seconds of the monotonic clock */
};

/* cm_settings is what the agent tells running programs. */
struct cm_settings {
	__u64 salt; /* of this node, for clients without an address */
	__u32 sample; /* 0, or one of how many choices is reported */
	__u32 spilled; /* peers of sockets of any slot may be in cm_tcp_peers */
};

/* cm_event is one choice, as the ring buffer reports it. */
struct cm_event {
	__u64 time; /* of the monotonic clock, in ns */
	__u64 netns;
	__u32 id;
	struct cm_endpoint frontend;
	struct cm_endpoint backend; /* zero if none was found */
	__u16 cluster;
	__u8 proto;
	__u8 verdict;
};

#define CM_EVENT_PICKED 0
#define CM_EVENT_REFUSED 1

/* cm_counters is as it was in version 1; what came later is in cm_reasons. Hits
 * of clusters that cm_cluster_hits has room for are counted there alone. */
struct cm_counters {
	__u64 hits;
	__u64 misses;
	__u64 refused;
	__u64 retries;
	__u64 forgotten;
};


struct cm_reasons {
	__u64 empty;
	__u64 swept;
	__u64 remembered;
	__u64 moved;
	__u64 expired;
	__u64 unremembered;
	__u64 unreported;
};

#endif
