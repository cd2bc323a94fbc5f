// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* The sockets that the hooks have translated, listed, and the end of those whose
 * backend is withdrawn. None of this is attached to anything: each program is an
 * iterator that runs when a process reads from it.
 *
 * What a socket asked for and got is in cm_tcp_slots, cm_tcp_peers or the socket's
 * storage.
 * Only sockets that are there are ever ended, so one that connected to the same
 * backend by itself is not. */

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "clustermesh.h"
#include "maps.h"
#include "peers.h"
#include "select.h"
#include "sweep.h"

#define CM_IPPROTO_TCP 6
#define CM_IPPROTO_UDP 17
#define CM_AF_INET 2

/* States of sockets, for both protocols. */
#define CM_ESTABLISHED 1
#define CM_TIME_WAIT 6
#define CM_CLOSE 7
#define CM_LISTEN 10
#define CM_NEW_SYN_RECV 12

/* Of the kernel's types only what is read here; the loader finds out where it
 * is. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	unsigned short skc_family;
	unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct seq_file;
struct udp_sock;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	void *map;
	void *key;
	void *value;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	void *map;
	struct sock *sk;
	void *value;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

/* cm_listed is one socket of a list. id is the number of the frontend that it
 * asked for, 0 if there is none any more. */
struct cm_listed {
	__u64 cookie;
	struct cm_peer peer;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

/* cm_pair is a withdrawn backend of a frontend, to which sockets are connected
 * still. */
struct cm_pair {
	struct cm_peer peer;
	__u32 proto;
};

/* Since when each such pair has been withdrawn, in ms of the monotonic clock: the
 * memory of the process that ends connections, over its restarts. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cm_pair);
	__type(value, __u64);
	__uint(max_entries, 65536);
} cm_gone SEC(".maps");

/* The sockets to end, by cookie, and what they have to be connected to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct cm_endpoint);
	__uint(max_entries, 65536);
} cm_condemned SEC(".maps");

const struct cm_listed *const cm_listed_type __attribute__((unused));

static __always_inline void cm_list(struct bpf_iter_meta *meta, __u64 cookie,
				    const struct cm_peer *peer, __u8 proto)
{
	struct cm_listed l = { .cookie = cookie, .proto = proto };

	__builtin_memcpy(&l.peer, peer, sizeof(l.peer));
	if (!l.peer.backend.port) /* forgotten, or never connected */
		return;
	l.id = cm_find(&l.peer.frontend, proto, CM_SCOPE_ANY);
	if (!l.id) /* it was translated, so it was where this scope counts */
		l.id = cm_find(&l.peer.frontend, proto, CM_SCOPE_HOST);
	bpf_seq_write(meta->seq, &l, sizeof(l));
}

/* A copy of a slot that was not written meanwhile; 0 if it is nobody's. The
 * exchanges keep the readings in order on every processor. */
static __always_inline int cm_read_slot(const volatile struct cm_tcp_slot *s,
					struct cm_tcp_slot *copy)
{
	__u64 fence = 0;

	copy->writes = s->writes;
	__sync_lock_test_and_set(&fence, 1);
	copy->cookie = s->cookie;
	if (!copy->cookie || copy->cookie == CM_SLOT_BUSY)
		return 0;
	__sync_lock_test_and_set(&fence, 2);
	copy->peer = *(const struct cm_peer *)&s->peer;
	__sync_lock_test_and_set(&fence, 3);
	if (s->cookie != copy->cookie)
		return 0;
	__sync_lock_test_and_set(&fence, 4);
	return s->writes == copy->writes;
}

/* A socket whose slot is written at this moment is connecting at this moment: it
 * is in the next list. */
SEC("iter/bpf_map_elem") int cm_list_slots(struct bpf_iter__bpf_map_elem *ctx)
{
	struct cm_tcp_slot *s = ctx->value, copy;

	if (s && cm_read_slot(s, &copy))
		cm_list(ctx->meta, copy.cookie, &copy.peer, CM_IPPROTO_TCP);
	return 0;
}

SEC("iter/bpf_map_elem") int cm_list_tcp(struct bpf_iter__bpf_map_elem *ctx)
{
	__u64 *cookie = ctx->key;
	struct cm_peer *peer = ctx->value;

	if (cookie && peer)
		cm_list(ctx->meta, *cookie, peer, CM_IPPROTO_TCP);
	return 0;
}

/* Connected UDP sockets, and the TCP sockets for which there was no other room.
 * This iterator alone sees those of all network namespaces. */
SEC("iter/bpf_sk_storage_map")
int cm_list_stored(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct cm_peer *peer = ctx->value;
	struct sock *sk = ctx->sk;
	__u8 state;

	if (!sk || !peer)
		return 0;
	state = sk->__sk_common.skc_state;
	if (state != CM_CLOSE && state != CM_LISTEN)
		cm_list(ctx->meta, bpf_get_socket_cookie(sk), peer,
			sk->sk_protocol);
	return 0;
}

static __always_inline int cm_leads_to(const struct sock_common *sk,
				       const struct cm_endpoint *e)
{
	if (sk->skc_dport != e->port)
		return 0;
	if (sk->skc_family == CM_AF_INET)
		return !cm_v6(e->addr) && sk->skc_daddr == e->addr[3];
	return sk->skc_v6_daddr.in6_u.u6_addr32[0] == e->addr[0] &&
	       sk->skc_v6_daddr.in6_u.u6_addr32[1] == e->addr[1] &&
	       sk->skc_v6_daddr.in6_u.u6_addr32[2] == e->addr[2] &&
	       sk->skc_v6_daddr.in6_u.u6_addr32[3] == e->addr[3];
}

/* Whether to end a socket. The cookie goes into the answer first: if that is full
 * the kernel comes back to this socket. */
static __always_inline int cm_ends(struct bpf_iter_meta *meta,
				   const struct sock_common *sk, __u64 cookie)
{
	struct cm_endpoint *e = bpf_map_lookup_elem(&cm_condemned, &cookie);

	return e && cm_leads_to(sk, e) &&
	       !bpf_seq_write(meta->seq, &cookie, sizeof(cookie));
}

SEC("iter/tcp") int cm_end_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	__u8 state;

	if (!sk)
		return 0;
	state = sk->skc_state;
	if (state == CM_TIME_WAIT || state == CM_NEW_SYN_RECV ||
	    state == CM_CLOSE || state == CM_LISTEN)
		return 0;
	if (cm_ends(ctx->meta, sk, bpf_get_socket_cookie(sk)))
		bpf_sock_destroy(sk);
	return 0;
}

SEC("iter/udp") int cm_end_udp(struct bpf_iter__udp *ctx)
{
	struct sock_common *sk = (struct sock_common *)ctx->udp_sk;

	if (!sk || sk->skc_state != CM_ESTABLISHED)
		return 0;
	if (cm_ends(ctx->meta, sk, bpf_get_socket_cookie(sk)))
		bpf_sock_destroy(sk);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
