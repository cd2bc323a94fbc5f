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

/* cm_plain is where the headers of a plain packet are. */
struct cm_plain {
	void *l3;
	struct tcphdr *l4;
	__u16 *sum; /* the checksum of l4 */
};

/* Reads a packet from its network header on; 0 if it is not plain. */
static __always_inline int cm_read_plain(void *l3, void *end, int v6,
					 struct cm_plain *h, struct cm_packet *p)
{
	struct tcphdr *l4 = l3 + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip4 = l3;

	if ((void *)l4 + 8 > end)
		return 0;
	if (v6) {
		p->proto = ip6->nexthdr;
		__builtin_memcpy(p->src.addr, &ip6->saddr, 16);
		__builtin_memcpy(p->dst.addr, &ip6->daddr, 16);
	} else {
		if (ip4->ihl != 5 || ip4->frag_off & bpf_htons(0x3fff))
			return 0;
		p->proto = ip4->protocol;
		cm_map4(p->src.addr, ip4->saddr);
		cm_map4(p->dst.addr, ip4->daddr);
	}
	p->tcp = 0;
	if (p->proto == IPPROTO_TCP) {
		if ((void *)(l4 + 1) > end)
			return 0;
		p->tcp = ((__u8 *)l4)[13];
		h->sum = &l4->check;
	} else if (p->proto == IPPROTO_UDP) {
		h->sum = (__u16 *)l4 + 3;
	} else {
		return 0;
	}
	asm volatile("" : "+r"(h->sum)); /* or it is computed where nothing is known */
	p->src.port = l4->source;
	p->dst.port = l4->dest;
	p->src.pad = p->dst.pad = 0;
	p->error = p->pad = 0;
	h->l3 = l3;
	h->l4 = l4;
	return 1;
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
				     const struct cm_packet *p,
				     const struct cm_flow *f, int v6,
				     int to_come)
{
	struct ipv6hdr *ip6 = h->l3;
	struct iphdr *ip4 = h->l3;

	cm_patch_checksum(h->sum, p->proto, f, to_come);
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
cm_flow_of_plain(const struct cm_packet *p, const struct cm_flow_key *key, int v6)
{
	struct cm_flow *f;

	if (p->tcp & (CM_SYN | CM_FIN | CM_RST))
		return 0;
	f = cm_lookup_flow(key, p->src.addr, p->dst.addr, v6);
	return f && !cm_anew(p, f) ? f : 0;
}

#endif
