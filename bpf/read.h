/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How the programs at TCX read any packet: by calls into the kernel, because its
 * headers may lie anywhere. plain.h is for those that need no such care. */
#ifndef CM_READ_H
#define CM_READ_H

#include "packet.h"

/* The errors that ICMP tells the sender of a packet. linux/icmp.h drags the C
 * library's headers in. */
#define CM_ICMP_UNREACHABLE 3
#define CM_ICMP_TIME_EXCEEDED 11
#define CM_ICMP_PARAMETER 12
#define CM_ICMP6_LAST_ERROR 4

/* Ports, and the flags of TCP, which lie behind them. */
static __always_inline int cm_read_ports(struct __sk_buff *skb,
					 struct cm_packet *p)
{
	struct cm_ports ports;

	if (bpf_skb_load_bytes(skb, p->l4, &ports, sizeof(ports)))
		return 0;
	p->src.port = ports.src;
	p->dst.port = ports.dst;
	if (p->proto == IPPROTO_TCP &&
	    bpf_skb_load_bytes(skb, p->l4 + 13, &p->tcp, 1))
		return 0;
	return 1;
}

/* The ports of a fragment: the first one has them, the later ones get them from
 * what was kept of it. A later fragment that comes first goes untranslated. */
static __always_inline int cm_fragment(struct __sk_buff *skb,
				       struct cm_packet *p, __u32 id, int later)
{
	struct cm_fragment_key key = { .id = id, .proto = p->proto };
	struct cm_ports ports, *known;

	__builtin_memcpy(key.src, p->src.addr, sizeof(key.src));
	__builtin_memcpy(key.dst, p->dst.addr, sizeof(key.dst));
	if (later) {
		known = bpf_map_lookup_elem(&cm_fragments, &key);
		if (!known)
			return 0;
		p->src.port = known->src;
		p->dst.port = known->dst;
		p->l4 = 0;
		return 1;
	}
	if (!cm_read_ports(skb, p))
		return 0;
	ports.src = p->src.port;
	ports.dst = p->dst.port;
	bpf_map_update_elem(&cm_fragments, &key, &ports, BPF_ANY);
	return 1;
}

/* The packet that an ICMP error is about went the other way: its addresses and
 * ports are turned round, so that they are the key of what came back. */
static __always_inline int cm_read_error4(struct __sk_buff *skb,
					  struct cm_packet *p)
{
	struct cm_ports ports;
	struct iphdr inner;
	__u8 type;

	if (bpf_skb_load_bytes(skb, p->l4, &type, 1) ||
	    (type != CM_ICMP_UNREACHABLE && type != CM_ICMP_TIME_EXCEEDED &&
	     type != CM_ICMP_PARAMETER))
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4 + 8, &inner, sizeof(inner)) ||
	    inner.ihl != 5 || inner.frag_off & bpf_htons(0x1fff) ||
	    !cm_translatable(inner.protocol) ||
	    bpf_skb_load_bytes(skb, p->l4 + 28, &ports, sizeof(ports)))
		return 0;
	cm_map4(p->src.addr, inner.daddr);
	cm_map4(p->dst.addr, inner.saddr);
	p->src.port = ports.dst;
	p->dst.port = ports.src;
	p->proto = inner.protocol;
	p->error = 1;
	return 1;
}

static __always_inline int cm_read_error6(struct __sk_buff *skb,
					  struct cm_packet *p)
{
	struct ipv6hdr inner;
	struct cm_ports ports;
	__u8 type;

	if (bpf_skb_load_bytes(skb, p->l4, &type, 1) || type == 0 ||
	    type > CM_ICMP6_LAST_ERROR)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4 + 8, &inner, sizeof(inner)) ||
	    !cm_translatable(inner.nexthdr) ||
	    bpf_skb_load_bytes(skb, p->l4 + 48, &ports, sizeof(ports)))
		return 0;
	__builtin_memcpy(p->src.addr, &inner.daddr, 16);
	__builtin_memcpy(p->dst.addr, &inner.saddr, 16);
	p->src.port = ports.dst;
	p->dst.port = ports.src;
	p->proto = inner.nexthdr;
	p->error = 1;
	return 1;
}

static __always_inline int cm_read4(struct __sk_buff *skb, struct cm_packet *p)
{
	struct iphdr ip;
	__u16 offset;

	if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)) || ip.ihl < 5)
		return 0;
	p->l4 = p->l3 + ip.ihl * 4;
	if (ip.protocol == IPPROTO_ICMP)
		return cm_read_error4(skb, p);
	if (!cm_translatable(ip.protocol))
		return 0;
	cm_map4(p->src.addr, ip.saddr);
	cm_map4(p->dst.addr, ip.daddr);
	p->proto = ip.protocol;
	offset = bpf_ntohs(ip.frag_off);
	if (offset & 0x3fff) /* more fragments, or not the first */
		return cm_fragment(skb, p, ip.id, offset & 0x1fff);
	return cm_read_ports(skb, p);
}

/* Extension headers that may stand before the one that matters. */
#define CM_EXTENSIONS 4

struct cm_extension {
	__u8 next;
	__u8 length; /* in units of 8 bytes beyond the first 8 */
	__u16 offset; /* in a fragment header */
	__u32 id;
};

static __always_inline int cm_read6(struct __sk_buff *skb, struct cm_packet *p)
{
	struct cm_extension ext = {};
	int i, fragment = 0;
	struct ipv6hdr ip;
	__u8 next;

	if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)))
		return 0;
	__builtin_memcpy(p->src.addr, &ip.saddr, 16);
	__builtin_memcpy(p->dst.addr, &ip.daddr, 16);
	p->l4 = p->l3 + sizeof(ip);
	next = ip.nexthdr;
	for (i = 0; i < CM_EXTENSIONS; i++) {
		if (next != 0 && next != IPPROTO_ROUTING &&
		    next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		if (fragment || bpf_skb_load_bytes(skb, p->l4, &ext, sizeof(ext)))
			return 0;
		fragment = next == IPPROTO_FRAGMENT;
		p->l4 += fragment ? 8 : 8 + ext.length * 8;
		next = ext.next;
	}
	if (next == IPPROTO_ICMPV6 && !fragment)
		return cm_read_error6(skb, p);
	if (!cm_translatable(next))
		return 0;
	p->proto = next;
	if (fragment)
		return cm_fragment(skb, p, ext.id,
				   ext.offset & bpf_htons(0xfff8));
	return cm_read_ports(skb, p);
}

/* Reads a packet whose network header begins l2 bytes in; 0 means that it is
 * none of ours. */
static __noinline int cm_read_any(struct __sk_buff *skb, __u32 l2,
				  struct cm_packet *p, int v6)
{
	__builtin_memset(p, 0, sizeof(*p));
	p->l3 = l2;
	return v6 ? cm_read6(skb, p) : cm_read4(skb, p);
}

#endif
