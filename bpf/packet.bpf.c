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

#include "plain.h"
#include "read.h"
#include "rewrite.h"
#include "toobig.h"

#define CM_NEXT -1 /* TCX_NEXT and TC_ACT_UNSPEC: whatever is attached behind us */

#define CM_AF_INET 2
#define CM_AF_INET6 10

/* How long the largest packet is that leaves for this one, from its network header
 * on: segments that travel together are sent one by one in the end. */
static __always_inline __u32 cm_length(struct __sk_buff *skb,
				       const struct cm_packet *p)
{
	__u32 segment = skb->gso_size;
	__u8 offset = 5 << 4;

	if (!segment || !p->l4)
		return skb->len - p->l3;
	if (p->proto != IPPROTO_TCP)
		return p->l4 - p->l3 + 8 + segment;
	bpf_skb_load_bytes(skb, p->l4 + 12, &offset, 1);
	return p->l4 - p->l3 + (offset >> 4) * 4 + segment;
}

/* Asks the routing table for a packet of a length, of any if that is 0. On success
 * fib holds the device by which it leaves and the next hop. */
static __always_inline long cm_route(void *ctx, __u32 ifindex, __u8 proto, int v6,
				     const __u32 *src, const __u32 *dst,
				     __u32 length, struct bpf_fib_lookup *fib)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = v6 ? CM_AF_INET6 : CM_AF_INET;
	fib->l4_protocol = proto;
	fib->ifindex = ifindex;
	fib->tot_len = length > 0xffff ? 0xffff : length;
	if (v6) {
		__builtin_memcpy(fib->ipv6_src, src, 16);
		__builtin_memcpy(fib->ipv6_dst, dst, 16);
	} else {
		fib->ipv4_src = src[3];
		fib->ipv4_dst = dst[3];
	}
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
}

/* The same for a packet that its flow sends past the stack, which finds the next
 * hop's address itself. */
static __always_inline long cm_route_flow(struct __sk_buff *skb,
					  const struct cm_packet *p,
					  const struct cm_flow *f, int v6,
					  struct bpf_fib_lookup *fib)
{
	long rc = cm_route(skb, skb->ifindex, p->proto, v6, f->src.addr,
			   f->dst.addr, p->error ? 0 : cm_length(skb, p), fib);

	return rc == BPF_FIB_LKUP_RET_NO_NEIGH ? BPF_FIB_LKUP_RET_SUCCESS : rc;
}

/* Sends a translated packet on by the way that was found. */
static __always_inline int cm_send(const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh next = { .nh_family = fib->family };

	__builtin_memcpy(next.ipv6_nh, fib->ipv6_dst, 16);
	return bpf_redirect_neigh(fib->ifindex, &next, sizeof(next), 0);
}

/* A packet that is too big to be sent on. Errors are never about errors, nor about
 * later fragments. */
static __noinline int cm_too_big(struct __sk_buff *skb, const struct cm_packet *p,
				 __u32 mtu, int v6)
{
	int plain = p->l4 == p->l3 + (v6 ? 40 : 20);
	int to_come = 0;

	if (p->error || !p->l4)
		return TC_ACT_SHOT;
	if (mtu >= cm_length(skb, p)) /* before Linux 5.12 nobody tells the MTU */
		mtu = v6 ? CM_LEAST_MTU6 : 0;
	if (plain && cm_checksum_at(p->proto))
		to_come = cm_can_see_checksum ? cm_summed(skb) == CM_SUM_TO_COME :
						!!skb->gso_size;
	if (v6)
		return p->l3 ? cm_too_big6(skb, ETH_HLEN, mtu, to_come) :
			       cm_too_big6(skb, 0, mtu, to_come);
	return p->l3 ? cm_too_big4(skb, ETH_HLEN, mtu, to_come) :
		       cm_too_big4(skb, 0, mtu, to_come);
}

/* Translates any packet by its flow. One that cannot be is dropped: half of it may
 * have been changed. */
static __noinline int cm_translate(struct __sk_buff *skb,
				   const struct cm_packet *p,
				   const struct cm_flow *f, int v6)
{
	int redirect = f->flags & CM_FLOW_REDIRECT;
	struct bpf_fib_lookup fib;
	long rc;

	if (redirect) {
		rc = cm_route_flow(skb, p, f, v6, &fib);
		if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED)
			return cm_too_big(skb, p, fib.mtu_result, v6);
		if (rc)
			return TC_ACT_SHOT;
	}
	if (p->error ? cm_rewrite_error(skb, p, f, v6) : cm_rewrite(skb, p, f, v6))
		return TC_ACT_SHOT;
	if (!redirect)
		return CM_NEXT;
	return cm_age(skb, p, v6) ? TC_ACT_SHOT : cm_send(&fib);
}

/* Notes the end of a TCP connection with both of its flows. */
static __noinline int cm_note_end(struct cm_flow *f, int v6)
{
	struct cm_flow *back;

	if (f->flags & CM_FLOW_CLOSING)
		return 0;
	f->flags |= CM_FLOW_CLOSING;
	back = cm_flow_between(&f->dst, &f->src, IPPROTO_TCP, v6);
	if (back)
		back->flags |= CM_FLOW_CLOSING;
	return 0;
}

/* Gives a connection a free port of this node as its source, and keeps the flow of
 * its replies. SCTP cannot have another port than its own. */
static __noinline int cm_take_port(struct cm_draft *d, __u8 proto, int v6)
{
	int i;

	for (i = 0; i < CM_SNAT_TRIES; i++) {
		if (proto != IPPROTO_SCTP)
			d->client.port = bpf_htons(CM_SNAT_FIRST +
						   bpf_get_prandom_u32() % CM_SNAT_PORTS);
		if (!cm_keep(d, &d->backend, &d->client, proto, v6, BPF_NOEXIST))
			return 1;
	}
	return 0;
}

/* Does this packet need the node's address as its source? What comes from outside
 * does, unless the backend is on this very node's stack, whose replies leave here
 * anyway; and a client that gets itself as a backend, which would not recognise its
 * own address. If so, the draft gets it. */
static __noinline int cm_masquerade(struct __sk_buff *skb,
				    const struct cm_packet *p,
				    struct cm_draft *draft, int v6)
{
	__u32 index = skb->ifindex;
	struct cm_device *d = bpf_map_lookup_elem(&cm_devices, &index);
	struct bpf_fib_lookup fib;
	const __u32 *addr;

	if (!d)
		return 0;
	addr = v6 ? d->addr6 : d->addr4;
	if (cm_zero(addr))
		return 0;
	if (!cm_same(draft->backend.addr, p->src.addr)) {
		if (!(d->flags & CM_DEVICE_SNAT) ||
		    cm_route(skb, index, p->proto, v6, p->src.addr,
			     draft->backend.addr, 0, &fib) == BPF_FIB_LKUP_RET_NOT_FWDED)
			return 0;
	}
	__builtin_memcpy(draft->client.addr, addr, 16);
	return 1;
}

/* Keeps the flow of the replies to a client under its own address. The client may
 * be using the same port towards another frontend whose backend is the same one:
 * the backend must see two connections, so the later one gets another port. UDP
 * does not say when it is done with a port, and goes with the last one who has it;
 * ports of SCTP cannot be changed. */
static __noinline int cm_keep_reply(struct cm_draft *d, __u8 proto, int v6)
{
	struct cm_flow *old = cm_flow_between(&d->backend, &d->client, proto, v6);

	if (old && proto == IPPROTO_TCP && !(old->flags & CM_FLOW_CLOSING) &&
	    (old->src.port != d->flow.src.port ||
	     !cm_same(old->src.addr, d->flow.src.addr)))
		return cm_take_port(d, proto, v6);
	return !cm_keep(d, &d->backend, &d->client, proto, v6, BPF_ANY);
}

/* The slab index of a backend for the first packet of a connection, 0 for none. */
static __noinline __u32 cm_ask(const struct cm_packet *p, __u32 id)
{
	__u32 index = cm_choose_for_address(id, bpf_get_prandom_u32(), &p->dst,
					    p->src.addr);

	if (!index)
		cm_count(refused);
	return index;
}

/* Makes both flows of a connection to the backend at a slab index, of which a client
 * may be known to keep its address. Returns 0 if that cannot be. */
static __noinline int cm_open(struct __sk_buff *skb, struct cm_packet *p,
			      __u32 index, int keeps, int v6)
{
	struct cm_backend *b = bpf_map_lookup_elem(&cm_slab, &index);
	__u32 zero = 0;
	struct cm_draft *d = bpf_map_lookup_elem(&cm_drafts, &zero);
	int kept;

	if (!b || !d)
		return 0;
	cm_chosen(b, &d->backend);
	d->client = p->src;
	d->flow.src = p->dst;
	d->flow.dst = p->src;
	d->flow.cluster = b->cluster;
	d->flow.flags = CM_FLOW_EGRESS;
	if (!keeps && cm_masquerade(skb, p, d, v6)) {
		d->flow.flags = CM_FLOW_REDIRECT;
		kept = cm_take_port(d, p->proto, v6);
	} else {
		kept = cm_keep_reply(d, p->proto, v6);
	}
	d->flow.src = d->client;
	d->flow.dst = d->backend;
	d->flow.flags = CM_FLOW_FORWARD | (d->flow.flags & CM_FLOW_REDIRECT);
	if (!kept || cm_keep(d, &p->src, &p->dst, p->proto, v6, BPF_ANY)) {
		cm_count(forgotten);
		return 0;
	}
	cm_count_hit(d->flow.cluster);
	return 1;
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
	return cm_find_once(&p->dst, p->proto, CM_SCOPE_OUTSIDE);
}

/* What becomes of any packet that has been read. */
static __always_inline int cm_decide(struct __sk_buff *skb, struct cm_packet *p,
				     int egress, int v6)
{
	struct cm_flow *f = cm_flow_between(&p->src, &p->dst, p->proto, v6);
	__u32 id, outside, index;

	if (f && !!(f->flags & CM_FLOW_EGRESS) != egress)
		return CM_NEXT;
	if (!f || (!p->error && cm_anew(p->proto, p->tcp, f))) {
		if (egress || p->error || !p->l4)
			return CM_NEXT;
		id = cm_find_once(&p->dst, p->proto, CM_SCOPE_ANY);
		if (!id)
			return CM_NEXT;
		outside = cm_find_outside(skb, p);
		index = cm_ask(p, outside ? outside : id);
		if (!index || !cm_open(skb, p, index, !!outside, v6))
			return TC_ACT_SHOT;
		f = cm_flow_between(&p->src, &p->dst, p->proto, v6);
		if (!f)
			return TC_ACT_SHOT;
	} else if (p->tcp & (CM_FIN | CM_RST) && !p->error) {
		cm_note_end(f, v6);
	}
	return cm_translate(skb, p, f, v6);
}

/* Translates a plain packet in place. */
static __always_inline void cm_follow(struct __sk_buff *skb,
				      const struct cm_plain *h,
				      const struct cm_flow *f, int v6)
{
	int summed = cm_summed(skb);

	cm_patch(h, f, v6, summed == CM_SUM_TO_COME);
	if (summed == CM_SUM_OF_PACKET && !v6)
		bpf_csum_update(skb, (__u16)~f->addresses);
}

/* The same for one that is sent on from here. Returns 0 for one that has to be
 * looked at more closely. */
static __noinline int cm_follow_on(struct __sk_buff *skb, const struct cm_plain *at,
				   const struct cm_packet *p,
				   const struct cm_flow *f, int v6)
{
	struct bpf_fib_lookup fib;
	struct cm_plain h = *at;

	if (!cm_lives(h.l3, v6) || cm_route_flow(skb, p, f, v6, &fib))
		return 0;
	cm_follow(skb, &h, f, v6);
	cm_age_plain(h.l3, v6);
	if (v6 && cm_summed(skb) == CM_SUM_OF_PACKET)
		bpf_csum_update(skb, (__u16)~bpf_htons(1));
	return cm_send(&fib);
}

static __always_inline int cm_handle_family(struct __sk_buff *skb, __u32 l2,
					    int egress, int v6)
{
	void *l3 = (void *)(long)skb->data + l2, *end = (void *)(long)skb->data_end;
	struct cm_endpoint src, dst;
	struct cm_flow_key key;
	struct cm_plain h, at;
	struct cm_packet p;
	struct cm_flow *f;
	int verdict;

	if (!cm_read_plain(l3, end, v6, &h)) {
		if (!cm_read_any(skb, l2, &p, v6))
			return CM_NEXT;
		return cm_decide(skb, &p, egress, v6);
	}
	cm_key_of_plain(&h, v6, &key);
	if (!cm_maybe(&key, egress)) {
		if (egress)
			return CM_NEXT;
		cm_ends_of_plain(&h, v6, &src, &dst);
		if (!cm_find_once(&dst, h.proto, CM_SCOPE_ANY))
			return CM_NEXT;
	} else if (cm_can_see_checksum) {
		f = cm_flow_of_plain(&h, &key, v6);
		if (f && !!(f->flags & CM_FLOW_EGRESS) == egress) {
			if (!(f->flags & CM_FLOW_REDIRECT)) {
				cm_follow(skb, &h, f, v6);
				return CM_NEXT;
			}
			at = h;
			cm_packet_of_plain(&h, v6, l2, &p);
			verdict = cm_follow_on(skb, &at, &p, f, v6);
			if (verdict)
				return verdict;
		}
	}
	cm_packet_of_plain(&h, v6, l2, &p);
	return cm_decide(skb, &p, egress, v6);
}

static __always_inline int cm_handle(struct __sk_buff *skb, __u32 l2, int egress)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return cm_handle_family(skb, l2, egress, 0);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return cm_handle_family(skb, l2, egress, 1);
	return CM_NEXT;
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

/* Can another device take what the XDP program of this one sends it? Drivers take
 * such packets only while they have a program themselves. */
static __always_inline int cm_takes(__u32 device)
{
	struct cm_device *d = bpf_map_lookup_elem(&cm_devices, &device);

	return d && d->flags & CM_DEVICE_XDP;
}

/* What XDP does of the work: packets in the middle of connections from outside and
 * of their replies, which come in and go out by devices of the node. Everything
 * else goes on to the programs at TCX. */
static __always_inline int cm_cross(struct xdp_md *xdp, struct ethhdr *eth,
				    void *end, int v6)
{
	void *l3 = eth + 1;
	struct bpf_fib_lookup fib;
	struct cm_flow_key key;
	struct cm_plain h;
	struct cm_flow *f;
	__u32 length;

	if (!cm_read_plain(l3, end, v6, &h))
		return XDP_PASS;
	cm_key_of_plain(&h, v6, &key);
	if (!cm_maybe(&key, 0))
		return XDP_PASS;
	f = cm_flow_of_plain(&h, &key, v6);
	if (!f || !(f->flags & CM_FLOW_REDIRECT) || !cm_lives(l3, v6))
		return XDP_PASS;
	length = v6 ? bpf_ntohs(((struct ipv6hdr *)l3)->payload_len) + sizeof(struct ipv6hdr) :
		      bpf_ntohs(((struct iphdr *)l3)->tot_len);
	if (cm_route(xdp, xdp->ingress_ifindex, h.proto, v6, f->src.addr,
		     f->dst.addr, length, &fib) != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS; /* the stack finds neighbours and writes errors */
	if (fib.ifindex != xdp->ingress_ifindex && !cm_takes(fib.ifindex))
		return XDP_PASS;
	cm_patch(&h, f, v6, 0);
	cm_age_plain(l3, v6);
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	return fib.ifindex == xdp->ingress_ifindex ? XDP_TX :
						     bpf_redirect(fib.ifindex, 0);
}

SEC("xdp.frags") int cm_xdp(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return cm_cross(xdp, eth, end, 0);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return cm_cross(xdp, eth, end, 1);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
