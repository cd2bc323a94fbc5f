// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* Load balancing per packet, for traffic that passes no socket of this node:
 * clients outside, sandboxed pods, anything that the socket hooks cannot see.
 *
 * A connection is two entries of cm_flows, one per direction, each from what a
 * packet says to what it becomes. The client's side is translated where it
 * enters a device, the backend's side where it leaves it, so that everything
 * between, netfilter included, sees one consistent connection.
 *
 * What comes from outside gets this node's address as its source, so that the
 * backend's replies come back here. Such packets cannot pass the stack, which
 * refuses its own address as a source from outside: they are sent on by the
 * routing table from here. */

#include "packet.h"

/* The ports for such sources. They lie above the range from which Linux takes
 * the ports of its own connections. */
#define CM_SNAT_FIRST 61000
#define CM_SNAT_PORTS 4536
#define CM_SNAT_TRIES 16

#define CM_NEXT -1 /* TCX_NEXT and TC_ACT_UNSPEC: whatever is attached behind us */

#define CM_AF_INET 2
#define CM_AF_INET6 10

static __always_inline int cm_zero(const __u32 *a)
{
	return !(a[0] | a[1] | a[2] | a[3]);
}

static __always_inline int cm_same(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* The checksum difference of two pairs of addresses. */
static __always_inline __s64 cm_address_diff(const struct cm_packet *p,
					     const __u32 *old_src,
					     const __u32 *old_dst,
					     const __u32 *src, const __u32 *dst)
{
	__u32 from[8], to[8];

	if (p->v6) {
		__builtin_memcpy(from, old_src, 16);
		__builtin_memcpy(from + 4, old_dst, 16);
		__builtin_memcpy(to, src, 16);
		__builtin_memcpy(to + 4, dst, 16);
		return bpf_csum_diff(from, 32, to, 32, 0);
	}
	from[0] = old_src[3];
	from[1] = old_dst[3];
	to[0] = src[3];
	to[1] = dst[3];
	return bpf_csum_diff(from, 8, to, 8, 0);
}

/* Stores two addresses into the IP header at l3, with its checksum. */
static __always_inline int cm_store_addresses(struct __sk_buff *skb,
					      const struct cm_packet *p,
					      __u32 l3, const __u32 *src,
					      const __u32 *dst, __s64 diff)
{
	__u32 both[8];

	if (p->v6) {
		__builtin_memcpy(both, src, 16);
		__builtin_memcpy(both + 4, dst, 16);
		return bpf_skb_store_bytes(skb, l3 + 8, both, 32, 0);
	}
	both[0] = src[3];
	both[1] = dst[3];
	if (bpf_l3_csum_replace(skb, l3 + 10, 0, diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, l3 + 12, both, 8, 0);
}

static __always_inline int cm_store_ports(struct __sk_buff *skb, __u32 l4,
					  __u16 src, __u16 dst)
{
	struct cm_ports ports = { src, dst };

	return bpf_skb_store_bytes(skb, l4, &ports, sizeof(ports), 0);
}

static __always_inline __s64 cm_ports_diff(__u16 old_src, __u16 old_dst,
					   __u16 src, __u16 dst)
{
	struct cm_ports from = { old_src, old_dst }, to = { src, dst };

	return bpf_csum_diff((__be32 *)&from, 4, (__be32 *)&to, 4, 0);
}

/* Makes the packet what its flow says. The checksum of SCTP covers ports but no
 * addresses and cannot be mended here: its ports have to stay what they are. */
static __always_inline int cm_rewrite(struct __sk_buff *skb,
				      const struct cm_packet *p,
				      const struct cm_flow *f)
{
	__u32 at = cm_checksum_at(p->key.proto);
	__u64 mangled = p->key.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	int ports = f->src.port != p->key.src.port ||
		    f->dst.port != p->key.dst.port;
	__s64 diff = cm_address_diff(p, p->key.src.addr, p->key.dst.addr,
				     f->src.addr, f->dst.addr);

	if (p->l4 && at) {
		if (bpf_l4_csum_replace(skb, p->l4 + at, 0, diff,
					BPF_F_PSEUDO_HDR | mangled))
			return -1;
		if (ports &&
		    bpf_l4_csum_replace(skb, p->l4 + at, 0,
					cm_ports_diff(p->key.src.port,
						      p->key.dst.port,
						      f->src.port, f->dst.port),
					mangled))
			return -1;
	}
	if (p->l4 && ports) {
		if (!at)
			return -1;
		if (cm_store_ports(skb, p->l4, f->src.port, f->dst.port))
			return -1;
	}
	return cm_store_addresses(skb, p, p->l3, f->src.addr, f->dst.addr, diff);
}

/* The packet inside the error had been translated, and its sender must find it
 * as it sent it. f is the flow of the packets that come back: what it turns the
 * destination into is what the inner source was, and the other way round.
 *
 * The checksum of the inner TCP or UDP header is left as it was: nobody can
 * verify it, because an error holds only the beginning of a packet. */
static __always_inline int cm_rewrite_error(struct __sk_buff *skb,
					    const struct cm_packet *p,
					    const struct cm_flow *f)
{
	__u32 inner = p->l4 + 8, ports = inner + (p->v6 ? 40 : 20);
	__u32 outer[8], src[4], dst[4];
	__s64 diff;

	/* The inner packet: an IPv4 header's own checksum evens its change out,
	 * ICMPv6 sees the change. */
	diff = cm_address_diff(p, p->key.dst.addr, p->key.src.addr, f->dst.addr,
			       f->src.addr);
	if (p->v6 && bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, 0))
		return -1;
	if (cm_store_addresses(skb, p, inner, f->dst.addr, f->src.addr, diff))
		return -1;
	diff = cm_ports_diff(p->key.dst.port, p->key.src.port, f->dst.port,
			     f->src.port);
	if (bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, 0) ||
	    cm_store_ports(skb, ports, f->dst.port, f->src.port))
		return -1;

	/* The error itself: it goes to whom the inner packet came from. */
	if (p->v6) {
		if (bpf_skb_load_bytes(skb, p->l3 + 8, outer, 32))
			return -1;
		__builtin_memcpy(src, outer, 16);
		__builtin_memcpy(dst, outer + 4, 16);
	} else {
		if (bpf_skb_load_bytes(skb, p->l3 + 12, outer, 8))
			return -1;
		cm_map4(src, outer[0]);
		cm_map4(dst, outer[1]);
	}
	diff = cm_address_diff(p, src, dst,
			       cm_same(src, p->key.src.addr) ? f->src.addr : src,
			       f->dst.addr);
	if (p->v6 &&
	    bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, BPF_F_PSEUDO_HDR))
		return -1;
	return cm_store_addresses(skb, p, p->l3,
				  cm_same(src, p->key.src.addr) ? f->src.addr : src,
				  f->dst.addr, diff);
}

/* One hop less to live, as the stack would do; a packet that has none left is
 * dropped. */
static __always_inline int cm_age(struct __sk_buff *skb,
				  const struct cm_packet *p)
{
	__u16 old, new;
	__u8 ttl;

	if (p->v6) {
		if (bpf_skb_load_bytes(skb, p->l3 + 7, &ttl, 1) || ttl < 2)
			return -1;
		ttl--;
		return bpf_skb_store_bytes(skb, p->l3 + 7, &ttl, 1, 0);
	}
	if (bpf_skb_load_bytes(skb, p->l3 + 8, &old, 2))
		return -1;
	ttl = (__u8)old;
	if (ttl < 2)
		return -1;
	new = (old & 0xff00) | (__u8)(ttl - 1);
	if (bpf_l3_csum_replace(skb, p->l3 + 10, old, new, 2))
		return -1;
	return bpf_skb_store_bytes(skb, p->l3 + 8, &new, 2, 0);
}

/* Asks the routing table; on success *device is where a packet leaves. */
static __always_inline long cm_route(struct __sk_buff *skb,
				     const struct cm_packet *p,
				     const __u32 *src, const __u32 *dst,
				     __u32 *device)
{
	struct bpf_fib_lookup fib = {
		.family = p->v6 ? CM_AF_INET6 : CM_AF_INET,
		.l4_protocol = p->key.proto,
		.ifindex = skb->ifindex,
	};
	long rc;

	if (p->v6) {
		__builtin_memcpy(fib.ipv6_src, src, 16);
		__builtin_memcpy(fib.ipv6_dst, dst, 16);
	} else {
		fib.ipv4_src = src[3];
		fib.ipv4_dst = dst[3];
	}
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	*device = fib.ifindex;
	return rc == BPF_FIB_LKUP_RET_NO_NEIGH ? BPF_FIB_LKUP_RET_SUCCESS : rc;
}

/* Sends a packet on by the routing table, past the stack. */
static __always_inline int cm_forward(struct __sk_buff *skb,
				      const struct cm_packet *p,
				      const struct cm_flow *f)
{
	__u32 device = 0;

	if (cm_age(skb, p) ||
	    cm_route(skb, p, f->src.addr, f->dst.addr, &device))
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(device, 0, 0, 0);
}

/* Translates a packet by its flow. One that cannot be is dropped: half of it may
 * have been changed. */
static __always_inline int cm_translate(struct __sk_buff *skb,
					const struct cm_packet *p,
					const struct cm_flow *f)
{
	int failed = p->error ? cm_rewrite_error(skb, p, f) :
				cm_rewrite(skb, p, f);

	if (failed)
		return TC_ACT_SHOT;
	return f->flags & CM_FLOW_REDIRECT ? cm_forward(skb, p, f) : CM_NEXT;
}

/* Notes the end of a TCP connection with both of its flows. */
static __always_inline void cm_note_end(const struct cm_packet *p,
					struct cm_flow *f)
{
	struct cm_flow_key other = { .src = f->dst, .dst = f->src,
				     .proto = p->key.proto };
	struct cm_flow *back;

	if (f->flags & CM_FLOW_CLOSING)
		return;
	f->flags |= CM_FLOW_CLOSING;
	back = bpf_map_lookup_elem(&cm_flows, &other);
	if (back)
		back->flags |= CM_FLOW_CLOSING;
}

/* Gives a connection this node's address and a free port as its source, and
 * keeps the flow of its replies. */
static __always_inline int cm_take_port(struct cm_flow_key *reply,
					const struct cm_flow *back)
{
	int i;

	for (i = 0; i < CM_SNAT_TRIES; i++) {
		__u32 port = CM_SNAT_FIRST + bpf_get_prandom_u32() % CM_SNAT_PORTS;

		reply->dst.port = bpf_htons(port);
		if (!bpf_map_update_elem(&cm_flows, reply, back, BPF_NOEXIST))
			return 1;
	}
	return 0;
}

/* Does this packet need the node's address as its source? What comes from outside
 * does, unless the backend is on this very node's stack, whose replies leave here
 * anyway; and a client that gets itself as a backend, which would not recognise
 * its own address. */
static __always_inline const __u32 *cm_masquerade(struct __sk_buff *skb,
						  const struct cm_packet *p,
						  const struct cm_endpoint *backend)
{
	__u32 index = skb->ifindex;
	struct cm_device *d = bpf_map_lookup_elem(&cm_devices, &index);
	const __u32 *own;
	__u32 device;

	if (!d)
		return 0;
	own = p->v6 ? d->addr6 : d->addr4;
	if (cm_zero(own))
		return 0;
	if (cm_same(backend->addr, p->key.src.addr))
		return own;
	if (!(d->flags & CM_DEVICE_SNAT) ||
	    cm_route(skb, p, p->key.src.addr, backend->addr, &device) ==
		    BPF_FIB_LKUP_RET_NOT_FWDED)
		return 0;
	return own;
}

/* Keeps the flow of the replies to a client under its own address. The client may
 * be using the same port towards another frontend whose backend is the same one:
 * the backend must see two connections, so the later one gets another port. UDP
 * does not say when it is done with a port, and goes with the last one who has it;
 * ports of SCTP cannot be changed. */
static __always_inline int cm_keep_reply(struct cm_flow_key *reply,
					 const struct cm_flow *back)
{
	struct cm_flow *old = bpf_map_lookup_elem(&cm_flows, reply);

	if (old && reply->proto == IPPROTO_TCP &&
	    !(old->flags & CM_FLOW_CLOSING) &&
	    (old->src.port != back->src.port ||
	     !cm_same(old->src.addr, back->src.addr)))
		return cm_take_port(reply, back);
	return !bpf_map_update_elem(&cm_flows, reply, back, BPF_ANY);
}

/* A packet that misses its frontend while another CPU relinks the hash is sent
 * again, so unlike a socket's one chance this look-up needs no second one. */
static __always_inline __u32 cm_find_once(const struct cm_endpoint *e, __u8 proto,
					  __u8 scope)
{
	struct cm_frontend_key key = {
		.addr = { e->addr[0], e->addr[1], e->addr[2], e->addr[3] },
		.port = e->port,
		.proto = proto,
		.scope = scope,
	};
	__u32 *id = bpf_map_lookup_elem(&cm_frontends, &key);

	return id ? *id : 0;
}

/* The frontend that takes this one's place for clients outside, 0 for none. Its
 * backends are on this node, so their replies pass here whatever their receiver
 * is: these clients keep their address. */
static __always_inline __u32 cm_find_outside(struct __sk_buff *skb,
					     const struct cm_packet *p)
{
	__u32 index = skb->ifindex;
	struct cm_device *d = bpf_map_lookup_elem(&cm_devices, &index);

	if (!d || !(d->flags & CM_DEVICE_SNAT))
		return 0;
	return cm_find_once(&p->key.dst, p->key.proto, CM_SCOPE_OUTSIDE);
}

/* The first packet of a connection: picks a backend and makes both flows. */
static __always_inline int cm_open(struct __sk_buff *skb,
				   const struct cm_packet *p, __u32 id)
{
	struct cm_flow there = { .src = p->key.src, .flags = CM_FLOW_FORWARD };
	struct cm_flow back = { .src = p->key.dst, .dst = p->key.src };
	struct cm_flow_key reply = { .proto = p->key.proto };
	__u32 outside = cm_find_outside(skb, p);
	struct cm_backend *b;
	const __u32 *own;

	b = cm_pick_for_address(outside ? outside : id, bpf_get_prandom_u32(), &p->key.dst,
				p->key.src.addr);
	if (!b) {
		cm_count(refused);
		return TC_ACT_SHOT;
	}
	cm_chosen(b, &there.dst);
	there.cluster = back.cluster = b->cluster;
	reply.src = there.dst;
	reply.dst = p->key.src;
	own = outside ? 0 : cm_masquerade(skb, p, &there.dst);
	if (own) {
		there.flags |= CM_FLOW_REDIRECT;
		back.flags |= CM_FLOW_REDIRECT;
		__builtin_memcpy(reply.dst.addr, own, 16);
		if (!cm_take_port(&reply, &back))
			goto full;
		there.src = reply.dst;
	} else {
		back.flags |= CM_FLOW_EGRESS;
		if (!cm_keep_reply(&reply, &back))
			goto full;
		there.src = reply.dst;
	}
	if (bpf_map_update_elem(&cm_flows, &p->key, &there, BPF_ANY))
		goto full;
	cm_count_hit(there.cluster);
	return cm_translate(skb, p, &there);
full:
	cm_count(forgotten);
	return TC_ACT_SHOT;
}

/* Is this the first packet of a new connection, although the flow of an old one
 * has the same addresses and ports? */
static __always_inline int cm_anew(const struct cm_packet *p,
				   const struct cm_flow *f)
{
	if (p->error || !(f->flags & CM_FLOW_FORWARD))
		return 0;
	if (p->key.proto == IPPROTO_TCP)
		return (p->tcp & (CM_SYN | CM_ACK)) == CM_SYN &&
		       (f->flags & CM_FLOW_CLOSING || cm_withdrawn(f->cluster));
	return cm_withdrawn(f->cluster);
}

static __always_inline int cm_handle(struct __sk_buff *skb, __u32 l2,
				     int egress)
{
	struct cm_packet p = {};
	struct cm_flow *f;
	__u32 id;

	if (!cm_read_packet(skb, l2, &p))
		return CM_NEXT;
	f = bpf_map_lookup_elem(&cm_flows, &p.key);
	if (f && !!(f->flags & CM_FLOW_EGRESS) != egress)
		return CM_NEXT;
	if (f && !cm_anew(&p, f)) {
		if (p.tcp & (CM_FIN | CM_RST) && !p.error)
			cm_note_end(&p, f);
		return cm_translate(skb, &p, f);
	}
	if (egress || p.error || !p.l4)
		return CM_NEXT;
	id = cm_find_once(&p.key.dst, p.key.proto, CM_SCOPE_ANY);
	return id ? cm_open(skb, &p, id) : CM_NEXT;
}

/* Devices with an Ethernet header, and those without one. */
SEC("tcx/ingress") int cm_ingress(struct __sk_buff *skb)
{
	return cm_handle(skb, ETH_HLEN, 0);
}

SEC("tcx/egress") int cm_egress(struct __sk_buff *skb)
{
	return cm_handle(skb, ETH_HLEN, 1);
}

SEC("tcx/ingress") int cm_ingress_l3(struct __sk_buff *skb)
{
	return cm_handle(skb, 0, 0);
}

SEC("tcx/egress") int cm_egress_l3(struct __sk_buff *skb)
{
	return cm_handle(skb, 0, 1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
