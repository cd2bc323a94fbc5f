/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Plain packets: TCP or UDP, whole, without options of IP, all headers where they
 * can be read and written directly. That is nearly all there is, and what the
 * programs at TCX and XDP share. */
#ifndef CM_PLAIN_H
#define CM_PLAIN_H

#include "packet.h"

/* How far a packet's checksum is: CHECKSUM_COMPLETE and CHECKSUM_PARTIAL of
 * linux/skbuff.h. */
#define CM_SUM_OF_PACKET 2
#define CM_SUM_TO_COME 3

/* cm_plain is what is known of a plain packet, and where its headers are. */
struct cm_plain {
	void *l3;
	struct tcphdr *l4;
	__u16 *sum; /* the checksum of l4 */
	__u8 proto;
	__u8 tcp; /* flags */
};

/* Reads a packet from its network header on; 0 if it is not plain. */
static __always_inline int cm_read_plain(void *l3, void *end, int v6,
					 struct cm_plain *h)
{
	struct tcphdr *l4 = l3 + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip4 = l3;

	if ((void *)l4 + 8 > end)
		return 0;
	if (!v6 && (ip4->ihl != 5 || ip4->frag_off & bpf_htons(0x3fff)))
		return 0;
	h->proto = v6 ? ip6->nexthdr : ip4->protocol;
	h->tcp = 0;
	if (h->proto == IPPROTO_TCP) {
		if ((void *)(l4 + 1) > end)
			return 0;
		h->tcp = ((__u8 *)l4)[13];
		h->sum = &l4->check;
	} else if (h->proto == IPPROTO_UDP) {
		h->sum = (__u16 *)l4 + 3;
	} else {
		return 0;
	}
	asm volatile("" : "+r"(h->sum)); /* or it is computed where nothing is known */
	h->l3 = l3;
	h->l4 = l4;
	return 1;
}

/* The key of a plain packet, from its headers. */
static __always_inline void cm_key_of_plain(const struct cm_plain *h, int v6,
					    struct cm_flow_key *key)
{
	struct ipv6hdr *ip6 = h->l3;
	struct iphdr *ip4 = h->l3;
	__u64 salt;

	if (v6) {
		salt = cm_salt();
		key->src = cm_digest(ip6->saddr.in6_u.u6_addr32, 1, salt);
		key->dst = cm_digest(ip6->daddr.in6_u.u6_addr32, 1, salt);
	} else {
		key->src = ip4->saddr;
		key->dst = ip4->daddr;
	}
	key->ports.src = h->l4->source;
	key->ports.dst = h->l4->dest;
	key->proto = h->proto;
	key->v6 = v6;
	key->pad = 0;
}

/* Where a plain packet comes from and goes to. */
static __always_inline void cm_ends_of_plain(const struct cm_plain *h, int v6,
					     struct cm_endpoint *src,
					     struct cm_endpoint *dst)
{
	struct ipv6hdr *ip6 = h->l3;
	struct iphdr *ip4 = h->l3;

	if (v6) {
		__builtin_memcpy(src->addr, &ip6->saddr, 16);
		__builtin_memcpy(dst->addr, &ip6->daddr, 16);
	} else {
		cm_map4(src->addr, ip4->saddr);
		cm_map4(dst->addr, ip4->daddr);
	}
	src->port = h->l4->source;
	dst->port = h->l4->dest;
	src->pad = dst->pad = 0;
}

/* What the rest of the programs wants to know of it. */
static __always_inline void cm_packet_of_plain(const struct cm_plain *h, int v6,
					       __u32 l2, struct cm_packet *p)
{
	cm_ends_of_plain(h, v6, &p->src, &p->dst);
	p->l3 = l2;
	p->l4 = l2 + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	p->proto = h->proto;
	p->tcp = h->tcp;
	p->error = p->pad = 0;
}

/* Changes the checksum of TCP or UDP, which is a bare sum of what is not in the
 * packet itself as long as it is to come. */
static __always_inline void cm_patch_checksum(__u16 *at, __u8 proto,
					      const struct cm_flow *f,
					      int to_come)
{
	__u16 old = *at, sum;

	if (proto == IPPROTO_UDP && !old)
		return; /* none */
	sum = to_come ? cm_grown(old, f->addresses) : cm_checksum(old, f->all);
	*at = proto == IPPROTO_UDP && !sum ? 0xffff : sum;
}

/* Makes a plain packet what its flow says. */
static __always_inline void cm_patch(const struct cm_plain *h,
				     const struct cm_flow *f, int v6,
				     int to_come)
{
	struct ipv6hdr *ip6 = h->l3;
	struct iphdr *ip4 = h->l3;

	cm_patch_checksum(h->sum, h->proto, f, to_come);
	h->l4->source = f->src.port;
	h->l4->dest = f->dst.port;
	if (v6) {
		__builtin_memcpy(&ip6->saddr, f->src.addr, 16);
		__builtin_memcpy(&ip6->daddr, f->dst.addr, 16);
	} else {
		ip4->check = cm_checksum(ip4->check, f->addresses);
		ip4->saddr = f->src.addr[3];
		ip4->daddr = f->dst.addr[3];
	}
}

/* One hop less to live; only for packets that cm_lives has looked at. */
static __always_inline void cm_age_plain(void *l3, int v6)
{
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip4 = l3;

	if (v6) {
		ip6->hop_limit--;
		return;
	}
	ip4->check = cm_checksum(ip4->check, (__u16)~bpf_htons(0x0100));
	ip4->ttl--;
}

static __always_inline int cm_lives(void *l3, int v6)
{
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip4 = l3;

	return (v6 ? ip6->hop_limit : ip4->ttl) > 1;
}

/* The flow of a plain packet, 0 if it has none or is anything but one of the many
 * packets in the middle of it. */
static __always_inline struct cm_flow *
cm_flow_of_plain(const struct cm_plain *h, const struct cm_flow_key *key, int v6)
{
	struct ipv6hdr *ip6 = h->l3;
	struct cm_flow *f;

	if (h->tcp & (CM_SYN | CM_FIN | CM_RST))
		return 0;
	f = cm_lookup_flow(key, ip6->saddr.in6_u.u6_addr32,
			   ip6->daddr.in6_u.u6_addr32, v6);
	return f && !cm_anew(h->proto, h->tcp, f) ? f : 0;
}

#endif
