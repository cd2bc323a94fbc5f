// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* Load balancing at the socket: a connect() or sendmsg() to a frontend goes to
 * one of its backends, and the socket keeps believing that it talks to the
 * frontend. No packet is touched, so an established connection costs nothing
 * and does not depend on these maps any more.
 *
 * Both families take one path, because every address here has 16 bytes. That
 * also serves dual-stack sockets, which the kernel shows to the IPv4 hooks when
 * they send and to the IPv6 hooks when they receive.
 *
 * Limits. An unconnected UDP socket that asks two frontends with a common
 * backend gets both answers from the one it asked last. An MPTCP socket is
 * translated through its first subflow, but its getpeername() names the backend,
 * because the kernel asks about another socket than the one that connected. */

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "clustermesh.h"
#include "event.h"
#include "maps.h"
#include "peers.h"
#include "select.h"
#include "sticky.h"
#include "sweep.h"
#include "usage.h"

#define CM_IPPROTO_TCP 6
#define CM_IPPROTO_UDP 17
#define CM_ECONNREFUSED 111
#define CM_AF_INET6 10

/* What a hook returns. recvmsg and getpeername may only allow. */
#define CM_DENY 0
#define CM_ALLOW 1

/* Set by the loader: bpf_set_retval exists since Linux 5.18. Without it a
 * refusal is EPERM, the only error a hook could give before. */
const volatile __u8 cm_can_set_retval = 1;

/* Set by the loader: the cookie of the network namespace that is the node's own,
 * 0 for the initial one. */
const volatile __u64 cm_host_netns = 0;

/* The address and port that the system call names (or, in recvmsg and
 * getpeername, that it is about to report). */
static __always_inline void cm_read(struct bpf_sock_addr *ctx, int v6,
				    struct cm_endpoint *e)
{
	if (v6) {
		e->addr[0] = ctx->user_ip6[0];
		e->addr[1] = ctx->user_ip6[1];
		e->addr[2] = ctx->user_ip6[2];
		e->addr[3] = ctx->user_ip6[3];
	} else {
		e->addr[0] = 0;
		e->addr[1] = 0;
		e->addr[2] = bpf_htonl(0xffff);
		e->addr[3] = ctx->user_ip4;
	}
	e->port = ctx->user_port;
	e->pad = 0;
}

/* The caller has checked that an IPv4 hook gets a v4-mapped address. */
static __always_inline void cm_write(struct bpf_sock_addr *ctx, int v6,
				     const __u32 *addr, __u16 port)
{
	if (v6) {
		ctx->user_ip6[0] = addr[0];
		ctx->user_ip6[1] = addr[1];
		ctx->user_ip6[2] = addr[2];
		ctx->user_ip6[3] = addr[3];
	} else {
		ctx->user_ip4 = addr[3];
	}
	ctx->user_port = port;
}

/* The seed of a consistent choice. A socket that is bound to an address, or that
 * was connected before, is known by it, as its packets would be on any node; for
 * one that is not, the address is not decided yet, and its network namespace
 * stands for the client. Numbers of namespaces repeat on other nodes, hence the
 * salt. */
static __always_inline __u64 cm_socket_seed(struct bpf_sock_addr *ctx,
					    __u64 netns)
{
	/* volatile and read as a whole, or the compiler computes addresses inside the
	 * socket, which the verifier does not allow. */
	const volatile struct bpf_sock *sk = ctx->sk;
	__u32 v4 = sk->src_ip4;
	__u32 addr[4] = { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2],
			  sk->src_ip6[3] };

	if (sk->family != CM_AF_INET6) {
		addr[0] = addr[1] = 0;
		addr[2] = bpf_htonl(0xffff);
		addr[3] = v4;
	}
	if (addr[3])
		return cm_hash_address(addr);
	return cm_hash_client(cm_salt(), netns);
}

/* A backend for this socket. Plain frontends decide here that they are plain, and
 * pay no more for it. */
static __always_inline struct cm_backend *
cm_pick_for_socket(struct bpf_sock_addr *ctx, __u32 id, __u64 seed,
		   const struct cm_endpoint *frontend)
{
	__u64 header = cm_header(id), netns;
	__u32 index, family = cm_v6(frontend->addr);

	if (!(header >> CM_HEADER_FLAGS)) {
		index = cm_choose(id, seed, family);
	} else {
		netns = bpf_get_netns_cookie(ctx);
		if (header & CM_HEADER_CONSISTENT)
			seed = cm_socket_seed(ctx, netns);
		if (header & CM_HEADER_STICKY)
			index = cm_choose_sticky(id, 0, netns, CM_CLIENT_NETNS,
						 seed, family);
		else
			index = cm_choose(id, seed, family);
	}
	return index ? bpf_map_lookup_elem(&cm_slab, &index) : 0;
}

static __always_inline int cm_refuse(__u32 id)
{
	cm_count(refused);
	if (!cm_selected(cm_header(id)))
		cm_explain(empty);
	if (cm_can_set_retval)
		bpf_set_retval(-CM_ECONNREFUSED);
	return CM_DENY;
}

static __always_inline void cm_store_peer(struct bpf_sock_addr *ctx,
					  const struct cm_peer *peer)
{
	struct cm_peer *p = bpf_sk_storage_get(&cm_peers, ctx->sk, 0,
					       BPF_SK_STORAGE_GET_F_CREATE);

	if (p)
		*p = *peer;
	else
		cm_count(forgotten);
}

/* Has this TCP socket never been on its way anywhere? Its destination outlives a
 * failed connect() and a disconnect, unless there was no route: then what is
 * remembered stays, for an address that cannot be reached. */
static __always_inline int cm_unused(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && !(sk->dst_ip4 | sk->dst_ip6[0] | sk->dst_ip6[1] |
		       sk->dst_ip6[2] | sk->dst_ip6[3]);
}

/* Clearing is cheaper than deleting, and looking is cheapest of all. No peer has
 * the address that is all zero. */
static __always_inline void cm_forget_peer(struct bpf_sock_addr *ctx)
{
	struct cm_peer *p;

	if (ctx->protocol == CM_IPPROTO_TCP && cm_unused(ctx))
		return;
	p = bpf_sk_storage_get(&cm_peers, ctx->sk, 0, 0);
	if (p)
		__builtin_memset(p, 0, sizeof(*p));
	if (ctx->protocol == CM_IPPROTO_TCP)
		cm_forget_tcp_peer(bpf_get_socket_cookie(ctx));
}

static __always_inline int cm_loopback(const struct cm_endpoint *e)
{
	if (e->addr[0] | e->addr[1])
		return 0;
	return e->addr[2] == bpf_htonl(0xffff) ?
		       e->addr[3] == bpf_htonl(0x7f000001) :
		       !e->addr[2] && e->addr[3] == bpf_htonl(1);
}

/* Is this socket in the node's own network namespace? There the loopback addresses
 * are the node's, in others they are a pod's. */
static __always_inline int cm_on_host(struct bpf_sock_addr *ctx)
{
	__u64 host = cm_host_netns;

	if (!host)
		host = bpf_get_netns_cookie(0);
	return bpf_get_netns_cookie(ctx) == host;
}

/* The number of the frontend that a socket means by an address, 0 for none. */
static __always_inline __u32 cm_find_for_socket(struct bpf_sock_addr *ctx,
						const struct cm_endpoint *e,
						__u8 proto)
{
	__u32 id = cm_find(e, proto, CM_SCOPE_ANY);

	if (!id && cm_loopback(e) && cm_on_host(ctx))
		id = cm_find(e, proto, CM_SCOPE_HOST);
	return id;
}

/* connect() of TCP and UDP. A socket that now goes elsewhere forgets what it
 * was connected to before. A TCP socket's slot is looked at before the choice, so
 * that the processor fetches it meanwhile. */
static __always_inline int cm_connect(struct bpf_sock_addr *ctx, int v6)
{
	struct cm_tcp_slot *slot = 0;
	__u64 cookie = 0, owner = 0;
	struct cm_peer peer;
	struct cm_backend *b;
	__u8 proto = ctx->protocol;
	__u32 id;

	if (proto != CM_IPPROTO_TCP && proto != CM_IPPROTO_UDP)
		return CM_ALLOW;
	cm_read(ctx, v6, &peer.frontend);
	id = cm_find_for_socket(ctx, &peer.frontend, proto);
	if (!id) {
		cm_forget_peer(ctx);
		cm_count(misses);
		return CM_ALLOW;
	}
	if (proto == CM_IPPROTO_TCP) {
		cookie = bpf_get_socket_cookie(ctx);
		slot = cm_slot_of(cookie);
		if (slot)
			owner = cm_slot_owner(slot);
	}
	b = cm_pick_for_socket(ctx, id, bpf_get_prandom_u32(), &peer.frontend);
	if (cm_sampled())
		cm_report(id, proto, bpf_get_netns_cookie(ctx), &peer.frontend, b);
	if (!b)
		return cm_refuse(id);
	cm_chosen(b, &peer.backend);
	if (!slot || !cm_keep_tcp_peer(slot, owner, cookie, &peer))
		cm_store_peer(ctx, &peer);
	cm_write(ctx, v6, peer.backend.addr, peer.backend.port);
	cm_count_hit(b->cluster);
	return CM_ALLOW;
}

/* Remembers for recvmsg which frontend an unconnected socket meant by a
 * backend. An entry that says so already is left alone: rewriting it could make
 * a look-up on another CPU miss. The empty peer tells recvmsg to look. */
static __always_inline void cm_keep_reverse(struct bpf_sock_addr *ctx,
					    __u64 cookie,
					    const struct cm_endpoint *frontend,
					    const struct cm_endpoint *backend)
{
	struct cm_reverse_key key = { .cookie = cookie, .backend = *backend };
	struct cm_endpoint *known = bpf_map_lookup_elem(&cm_reverse, &key);

	if (!bpf_sk_storage_get(&cm_peers, ctx->sk, 0,
				BPF_SK_STORAGE_GET_F_CREATE))
		cm_count(forgotten);
	if (known && cm_equal(known, frontend))
		return;
	if (bpf_map_update_elem(&cm_reverse, &key, frontend, BPF_ANY))
		cm_count(forgotten);
}

/* What this socket is connected to, if connect() translated it. */
static __always_inline struct cm_peer *cm_connected(struct bpf_sock_addr *ctx)
{
	if (ctx->sk->state != BPF_TCP_ESTABLISHED)
		return 0;
	return bpf_sk_storage_get(&cm_peers, ctx->sk, 0, 0);
}

/* Sending a UDP datagram with a destination. A connected dual-stack socket
 * comes here too, with the backend that connect() chose as the destination:
 * that one must stay as it is, even if it is itself somebody's frontend. */
static __always_inline int cm_sendmsg(struct bpf_sock_addr *ctx, int v6)
{
	struct cm_endpoint frontend, backend;
	struct cm_backend *b;
	struct cm_peer *p;
	__u64 cookie;
	__u32 id;

	if (ctx->protocol != CM_IPPROTO_UDP)
		return CM_ALLOW;
	cm_read(ctx, v6, &frontend);
	p = cm_connected(ctx);
	if (p && cm_equal(&p->backend, &frontend))
		return CM_ALLOW;
	if (p && cm_equal(&p->frontend, &frontend)) {
		cm_write(ctx, v6, p->backend.addr, p->backend.port);
		return CM_ALLOW;
	}
	id = cm_find_for_socket(ctx, &frontend, CM_IPPROTO_UDP);
	if (!id) {
		cm_count(misses);
		return CM_ALLOW;
	}
	cookie = bpf_get_socket_cookie(ctx);
	b = cm_pick_for_socket(ctx, id, cookie ^ ((__u64)id << 32), &frontend);
	if (cm_sampled())
		cm_report(id, CM_IPPROTO_UDP, bpf_get_netns_cookie(ctx), &frontend, b);
	if (!b)
		return cm_refuse(id);
	cm_count_hit(b->cluster);
	cm_chosen(b, &backend);
	cm_keep_reverse(ctx, cookie, &frontend, &backend);
	cm_write(ctx, v6, backend.addr, backend.port);
	return CM_ALLOW;
}

/* Receiving a UDP datagram and asking for its source. Sockets that never had
 * to do with a frontend leave at once. */
static __always_inline int cm_recvmsg(struct bpf_sock_addr *ctx, int v6)
{
	struct cm_peer *p = bpf_sk_storage_get(&cm_peers, ctx->sk, 0, 0);
	struct cm_reverse_key key = {};
	struct cm_endpoint *frontend;

	if (!p)
		return CM_ALLOW;
	cm_read(ctx, v6, &key.backend);
	if (ctx->sk->state == BPF_TCP_ESTABLISHED &&
	    cm_equal(&p->backend, &key.backend)) {
		cm_write(ctx, v6, p->frontend.addr, p->frontend.port);
		return CM_ALLOW;
	}
	key.cookie = bpf_get_socket_cookie(ctx);
	frontend = bpf_map_lookup_elem(&cm_reverse, &key);
	if (!frontend)
		frontend = bpf_map_lookup_elem(&cm_reverse, &key);
	if (frontend)
		cm_write(ctx, v6, frontend->addr, frontend->port);
	return CM_ALLOW;
}

/* getpeername(): the frontend, if the peer still is what connect() chose. */
static __always_inline int cm_getpeername(struct bpf_sock_addr *ctx, int v6)
{
	struct cm_peer *p = 0;
	struct cm_endpoint peer;

	if (ctx->protocol == CM_IPPROTO_TCP)
		p = cm_tcp_peer(bpf_get_socket_cookie(ctx));
	if (!p)
		p = bpf_sk_storage_get(&cm_peers, ctx->sk, 0, 0);
	if (!p)
		return CM_ALLOW;
	cm_read(ctx, v6, &peer);
	if (cm_equal(&p->backend, &peer))
		cm_write(ctx, v6, p->frontend.addr, p->frontend.port);
	return CM_ALLOW;
}

/* The last descriptor of a socket is closed: its cookie never comes back. */
SEC("cgroup/sock_release") int cm_release(struct bpf_sock *sk)
{
	if (sk->protocol != CM_IPPROTO_TCP)
		return CM_ALLOW;
	cm_forget_tcp_peer(bpf_get_socket_cookie(sk));
	return CM_ALLOW;
}

#define CM_HOOK(section, name, path, v6)                                  \
	SEC(section) int name(struct bpf_sock_addr *ctx)                  \
	{                                                                 \
		return path(ctx, v6);                                     \
	}

CM_HOOK("cgroup/connect4", cm_connect4, cm_connect, 0)
CM_HOOK("cgroup/connect6", cm_connect6, cm_connect, 1)
CM_HOOK("cgroup/sendmsg4", cm_sendmsg4, cm_sendmsg, 0)
CM_HOOK("cgroup/sendmsg6", cm_sendmsg6, cm_sendmsg, 1)
CM_HOOK("cgroup/recvmsg4", cm_recvmsg4, cm_recvmsg, 0)
CM_HOOK("cgroup/recvmsg6", cm_recvmsg6, cm_recvmsg, 1)
CM_HOOK("cgroup/getpeername4", cm_getpeername4, cm_getpeername, 0)
CM_HOOK("cgroup/getpeername6", cm_getpeername6, cm_getpeername, 1)

char _license[] SEC("license") = "Dual BSD/GPL";
