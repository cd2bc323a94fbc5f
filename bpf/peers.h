/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where the peers of TCP sockets are kept, from their connect() until the last
 * descriptor is closed: in the slot of the socket's cookie if that is free, else
 * in cm_tcp_peers, never in both. If neither has room, the socket's own storage
 * takes over, which costs several times as much.
 *
 * Cookies count upwards, so the sockets of some time share no slot. A connect()
 * then touches one line of memory here, where a hash and its elements are many.
 *
 * Sockets that the kernel itself opened (MPTCP subflows, NFS) close unseen; what
 * they leave is bounded by the sizes of the maps. */
#ifndef CM_PEERS_H
#define CM_PEERS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "clustermesh.h"

/* Set by the loader: one less than how many slots there are, a power of two. */
const volatile __u32 cm_slot_mask = 0;

/* A slot is being written. Cookies count upwards from 1, those made in interrupts
 * downwards from 2^64 - 1: none gets here. The loader knows this number too. */
#define CM_SLOT_BUSY 0xffffffff80000000ULL

/* cm_tcp_slot is as large as a line of memory. Whoever reads it without being the
 * socket's system call has to see the same cookie and the same number of writes
 * before and after. */
struct cm_tcp_slot {
	__u64 cookie; /* whose peer this is, 0 for nobody's */
	struct cm_peer peer;
	__u32 writes;
	__u32 spilled; /* cm_tcp_peers may have had sockets of this slot */
	__u8 pad[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cm_tcp_slot);
	__uint(max_entries, 1);
} cm_tcp_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct cm_peer);
	__uint(max_entries, 1);
} cm_tcp_peers SEC(".maps");

static __always_inline struct cm_tcp_slot *cm_slot_of(__u64 cookie)
{
	__u32 index = cookie & cm_slot_mask;

	return bpf_map_lookup_elem(&cm_tcp_slots, &index);
}

/* Whose peer a slot has now. */
static __always_inline __u64 cm_slot_owner(const struct cm_tcp_slot *s)
{
	return *(const volatile __u64 *)&s->cookie;
}

/* May cm_tcp_peers have sockets of this slot? A loader that took over from one
 * that knew no slots says so of all, until it has looked. */
static __always_inline int cm_spilled(const struct cm_tcp_slot *s)
{
	__u32 zero = 0;
	struct cm_settings *all = bpf_map_lookup_elem(&cm_settings, &zero);

	return *(const volatile __u32 *)&s->spilled ||
	       (all && *(volatile __u32 *)&all->spilled);
}

/* The peer of a socket in cm_tcp_peers. */
static __always_inline struct cm_peer *cm_spilled_peer(const struct cm_tcp_slot *s,
						       __u64 cookie)
{
	return cm_spilled(s) ? bpf_map_lookup_elem(&cm_tcp_peers, &cookie) : 0;
}

/* The exchanges order what is around them on every processor. The loader takes
 * them out where the kernel has none (before Linux 5.12): then no slot is ever
 * free. */
static __always_inline int cm_write_slot(struct cm_tcp_slot *s, __u64 from,
					 __u64 cookie, const struct cm_peer *peer)
{
	if (__sync_val_compare_and_swap(&s->cookie, from, CM_SLOT_BUSY) != from)
		return 0;
	s->peer = *peer;
	s->writes++;
	__sync_lock_test_and_set(&s->cookie, cookie);
	return 1;
}

static __always_inline int cm_spill(struct cm_tcp_slot *s, __u64 cookie,
				    const struct cm_peer *peer)
{
	if (bpf_map_update_elem(&cm_tcp_peers, &cookie, peer, BPF_ANY))
		return 0;
	if (!s->spilled)
		*(volatile __u32 *)&s->spilled = 1;
	return 1;
}

/* Keeps the peer of a TCP socket; 0 if there is no room. owner is what
 * cm_slot_owner said. A socket has one system call at a time in here. */
static __always_inline int cm_keep_tcp_peer(struct cm_tcp_slot *s, __u64 owner,
					    __u64 cookie,
					    const struct cm_peer *peer)
{
	if ((owner == cookie || (!owner && !cm_spilled_peer(s, cookie))) &&
	    cm_write_slot(s, owner, cookie, peer))
		return 1;
	return cm_spill(s, cookie, peer);
}

static __always_inline struct cm_peer *cm_tcp_peer(__u64 cookie)
{
	struct cm_tcp_slot *s = cm_slot_of(cookie);

	if (!s)
		return 0;
	return cm_slot_owner(s) == cookie ? &s->peer : cm_spilled_peer(s, cookie);
}

/* The socket is closed, or it is on its way to what is no frontend. */
static __always_inline void cm_forget_tcp_peer(__u64 cookie)
{
	struct cm_tcp_slot *s = cm_slot_of(cookie);

	if (!s)
		return;
	if (cm_slot_owner(s) == cookie) /* the process that ends sockets frees slots too */
		__sync_val_compare_and_swap(&s->cookie, cookie, 0);
	else if (cm_spilled_peer(s, cookie))
		bpf_map_delete_elem(&cm_tcp_peers, &cookie);
}

#endif
