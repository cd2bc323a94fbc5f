/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The answer to a packet that is too big for its way on: where we send packets past
 * the stack, nobody else would give it. The packet is turned into an ICMP error
 * about itself, from whom it was sent to, and goes back by the device that it came
 * from. */
#ifndef CM_TOOBIG_H
#define CM_TOOBIG_H

#include "packet.h"

#define CM_ICMP_FRAG_NEEDED 4
#define CM_ICMP6_TOO_BIG 2
#define CM_HOPS 64
#define CM_LEAST_MTU6 1280

/* How much of the packet an error quotes. A packet that is too big is longer: no
 * link has an MTU below 68, or below 1280 for IPv6. */
#define CM_QUOTE4 64
#define CM_QUOTE6 1232

/* linux/icmp.h and linux/icmpv6.h drag the C library's headers in. */
struct cm_icmp {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 mtu; /* in ICMPv6; in ICMP its lower half */
};

struct cm_error4 {
	struct iphdr ip;
	struct cm_icmp icmp;
	struct iphdr was;
	__u8 rest[CM_QUOTE4 - sizeof(struct iphdr)];
};

struct cm_error6 {
	struct ipv6hdr ip;
	struct cm_icmp icmp;
	struct ipv6hdr was;
	__u8 rest[CM_QUOTE6 - sizeof(struct ipv6hdr)];
};

/* What of a pseudo header is no address. */
struct cm_pseudo {
	__u32 length;
	__u32 next;
};

/* Cuts the packet down to what is quoted and makes room before it. */
static __always_inline long cm_quote(struct __sk_buff *skb, __u32 l2,
				     __u32 quote, __u32 room)
{
	return skb->len < l2 + quote ||
	       bpf_skb_change_tail(skb, l2 + quote, 0) ||
	       bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0) ||
	       bpf_skb_pull_data(skb, l2 + room + quote);
}

/* Sends the packet back to the last hop. */
static __always_inline int cm_send_back(struct __sk_buff *skb, __u32 l2)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	__u8 mac[ETH_ALEN];

	if (l2) {
		if ((void *)(eth + 1) > end)
			return TC_ACT_SHOT;
		__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
		__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
		__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	}
	return bpf_redirect(skb->ifindex, 0);
}

/* A transport header's part in a sum over what quotes it, if its checksum is still
 * to come: that will be written into the quote when the error leaves, and make a
 * sum of its own over everything behind, so that all of it together is the
 * complement of the bare sum that stands there now. */
static __always_inline __u16 cm_sum_to_come(void *l4, __u8 proto)
{
	return proto == IPPROTO_UDP ? ~((__u16 *)l4)[3] : ~((__u16 *)l4)[8];
}

static __noinline int cm_too_big4(struct __sk_buff *skb, __u32 l2, __u32 mtu,
				  int to_come)
{
	struct cm_error4 *e;
	__s64 sum;

	if (cm_quote(skb, l2, CM_QUOTE4, sizeof(e->ip) + sizeof(e->icmp)))
		return TC_ACT_SHOT;
	e = (void *)(long)skb->data + l2;
	if ((void *)(e + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	__builtin_memset(e, 0, sizeof(e->ip) + sizeof(e->icmp));
	e->ip.version = 4;
	e->ip.ihl = 5;
	e->ip.tot_len = bpf_htons(sizeof(*e));
	e->ip.frag_off = bpf_htons(0x4000);
	e->ip.ttl = CM_HOPS;
	e->ip.protocol = IPPROTO_ICMP;
	e->ip.saddr = e->was.daddr;
	e->ip.daddr = e->was.saddr;
	e->ip.check = ~cm_fold(bpf_csum_diff(0, 0, (void *)&e->ip, sizeof(e->ip), 0));
	e->icmp.type = 3;
	e->icmp.code = CM_ICMP_FRAG_NEEDED;
	e->icmp.mtu = bpf_htonl(mtu);
	sum = bpf_csum_diff(0, 0, (void *)&e->icmp, sizeof(e->icmp) + sizeof(e->was), 0);
	if (to_come)
		sum += cm_sum_to_come(e->rest, e->was.protocol);
	else
		sum = bpf_csum_diff(0, 0, (void *)e->rest, sizeof(e->rest), sum);
	e->icmp.check = ~cm_fold(sum);
	return cm_send_back(skb, l2);
}

static __noinline int cm_too_big6(struct __sk_buff *skb, __u32 l2, __u32 mtu,
				  int to_come)
{
	struct cm_pseudo pseudo = {
		bpf_htonl(sizeof(struct cm_icmp) + CM_QUOTE6),
		bpf_htonl(IPPROTO_ICMPV6),
	};
	struct cm_error6 *e;
	__s64 sum;

	if (cm_quote(skb, l2, CM_QUOTE6, sizeof(e->ip) + sizeof(e->icmp)))
		return TC_ACT_SHOT;
	e = (void *)(long)skb->data + l2;
	if ((void *)(e + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	__builtin_memset(e, 0, sizeof(e->ip) + sizeof(e->icmp));
	e->ip.version = 6;
	e->ip.payload_len = bpf_htons(sizeof(*e) - sizeof(e->ip));
	e->ip.nexthdr = IPPROTO_ICMPV6;
	e->ip.hop_limit = CM_HOPS;
	__builtin_memcpy(&e->ip.saddr, &e->was.daddr, 16);
	__builtin_memcpy(&e->ip.daddr, &e->was.saddr, 16);
	e->icmp.type = CM_ICMP6_TOO_BIG;
	e->icmp.mtu = bpf_htonl(mtu);
	sum = bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (void *)&e->ip.saddr, 32, sum);
	sum = bpf_csum_diff(0, 0, (void *)&e->icmp, sizeof(e->icmp) + sizeof(e->was), sum);
	if (to_come) {
		sum += cm_sum_to_come(e->rest, e->was.nexthdr);
	} else {
		sum = bpf_csum_diff(0, 0, (void *)e->rest, 512, sum);
		sum = bpf_csum_diff(0, 0, (void *)e->rest + 512, 512, sum);
		sum = bpf_csum_diff(0, 0, (void *)e->rest + 1024,
				    sizeof(e->rest) - 1024, sum);
	}
	e->icmp.check = ~cm_fold(sum);
	return cm_send_back(skb, l2);
}

#endif
