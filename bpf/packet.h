/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the per-packet programs keep, and how they read a packet. */
#ifndef CM_PACKET_H
#define CM_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include "sticky.h"

/* The errors that ICMP tells the sender of a packet. linux/icmp.h drags the C
 * library's headers in. */
#define CM_ICMP_UNREACHABLE 3
#define CM_ICMP_TIME_EXCEEDED 11
#define CM_ICMP_PARAMETER 12
#define CM_ICMP6_LAST_ERROR 4

/* cm_flow_key is what a packet says: addresses and ports, as everywhere. */
struct cm_flow_key {
	struct cm_endpoint src;
	struct cm_endpoint dst;
	__u8 proto;
	__u8 pad[3];
};

/* cm_flow is what that packet becomes. A connection has two of them, one per
 * direction. */
struct cm_flow {
	struct cm_endpoint src;
	struct cm_endpoint dst;
	__u16 cluster; /* of the backend */
	__u8 flags;
	__u8 pad;
};

#define CM_FLOW_FORWARD 1 /* from the client */
#define CM_FLOW_EGRESS 2 /* translated where it leaves, else where it enters */
#define CM_FLOW_REDIRECT 4 /* its source is an address of this node: past the stack */
#define CM_FLOW_CLOSING 8 /* a FIN or RST was seen: the next SYN is a new client */

/* cm_fragment_key finds the ports of a datagram's later fragments. */
struct cm_fragment_key {
	__u32 src[4];
	__u32 dst[4];
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct cm_ports {
	__u16 src;
	__u16 dst;
};

/* cm_device says how to treat what enters by a device. The addresses are the
 * node's own, v4-mapped the first, all zero where it has none. */
struct cm_device {
	__u32 addr4[4];
	__u32 addr6[4];
	__u32 flags;
};

#define CM_DEVICE_SNAT 1 /* clients are outside: replies must come back here */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct cm_flow_key);
	__type(value, struct cm_flow);
	__uint(max_entries, 1);
} cm_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct cm_fragment_key);
	__type(value, struct cm_ports);
	__uint(max_entries, 1);
} cm_fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct cm_device);
	__uint(max_entries, 1);
} cm_devices SEC(".maps");

/* cm_packet is what the programs know of a packet. l4 is 0 in a fragment that has
 * no ports of its own. */
struct cm_packet {
	struct cm_flow_key key;
	__u32 l3;
	__u32 l4;
	__u8 v6;
	__u8 tcp; /* flags */
	__u8 error; /* an ICMP error; the key is that of the packet it is about, turned round */
};

#define CM_FIN 0x01
#define CM_SYN 0x02
#define CM_RST 0x04
#define CM_ACK 0x10

/* Where the checksum is in the header of a protocol, 0 for one without. */
static __always_inline __u32 cm_checksum_at(__u8 proto)
{
	return proto == IPPROTO_TCP ? 16 : proto == IPPROTO_UDP ? 6 : 0;
}

static __always_inline int cm_translatable(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP ||
	       proto == IPPROTO_SCTP;
}

/* Ports, and the flags of TCP, which lie behind them. */
static __always_inline int cm_read_ports(struct __sk_buff *skb,
					 struct cm_packet *p)
{
	struct cm_ports ports;

	if (bpf_skb_load_bytes(skb, p->l4, &ports, sizeof(ports)))
		return 0;
	p->key.src.port = ports.src;
	p->key.dst.port = ports.dst;
	if (p->key.proto == IPPROTO_TCP &&
	    bpf_skb_load_bytes(skb, p->l4 + 13, &p->tcp, 1))
		return 0;
	return 1;
}

/* The ports of a fragment: the first one has them, the later ones get them from
 * what was kept of it. A later fragment that comes first goes untranslated. */
static __always_inline int cm_fragment(struct __sk_buff *skb,
				       struct cm_packet *p, __u32 id, int later)
{
	struct cm_fragment_key key = { .id = id, .proto = p->key.proto };
	struct cm_ports ports, *known;

	__builtin_memcpy(key.src, p->key.src.addr, sizeof(key.src));
	__builtin_memcpy(key.dst, p->key.dst.addr, sizeof(key.dst));
	if (later) {
		known = bpf_map_lookup_elem(&cm_fragments, &key);
		if (!known)
			return 0;
		p->key.src.port = known->src;
		p->key.dst.port = known->dst;
		p->l4 = 0;
		return 1;
	}
	if (!cm_read_ports(skb, p))
		return 0;
	ports.src = p->key.src.port;
	ports.dst = p->key.dst.port;
	bpf_map_update_elem(&cm_fragments, &key, &ports, BPF_ANY);
	return 1;
}

static __always_inline void cm_map4(__u32 *addr, __u32 v4)
{
	addr[0] = 0;
	addr[1] = 0;
	addr[2] = bpf_htonl(0xffff);
	addr[3] = v4;
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
	cm_map4(p->key.src.addr, inner.daddr);
	cm_map4(p->key.dst.addr, inner.saddr);
	p->key.src.port = ports.dst;
	p->key.dst.port = ports.src;
	p->key.proto = inner.protocol;
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
	__builtin_memcpy(p->key.src.addr, &inner.daddr, 16);
	__builtin_memcpy(p->key.dst.addr, &inner.saddr, 16);
	p->key.src.port = ports.dst;
	p->key.dst.port = ports.src;
	p->key.proto = inner.nexthdr;
	p->error = 1;
	return 1;
}

/* The common case without a call into the kernel: a whole IPv4 packet of TCP or
 * UDP without options, whose headers lie where they can be read. */
static __always_inline int cm_read_plain4(struct __sk_buff *skb, __u32 l2,
					  struct cm_packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + l2;
	struct tcphdr *l4 = (void *)(ip + 1);

	if ((void *)(l4 + 1) > end || ip->ihl != 5 ||
	    ip->frag_off & bpf_htons(0x3fff))
		return 0;
	if (ip->protocol == IPPROTO_TCP)
		p->tcp = ((__u8 *)l4)[13];
	else if (ip->protocol != IPPROTO_UDP)
		return 0;
	cm_map4(p->key.src.addr, ip->saddr);
	cm_map4(p->key.dst.addr, ip->daddr);
	p->key.src.port = l4->source;
	p->key.dst.port = l4->dest;
	p->key.proto = ip->protocol;
	p->l4 = l2 + sizeof(*ip);
	return 1;
}

static __always_inline int cm_read_plain6(struct __sk_buff *skb, __u32 l2,
					  struct cm_packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + l2;
	struct tcphdr *l4 = (void *)(ip + 1);

	if ((void *)(l4 + 1) > end)
		return 0;
	if (ip->nexthdr == IPPROTO_TCP)
		p->tcp = ((__u8 *)l4)[13];
	else if (ip->nexthdr != IPPROTO_UDP)
		return 0;
	__builtin_memcpy(p->key.src.addr, &ip->saddr, 16);
	__builtin_memcpy(p->key.dst.addr, &ip->daddr, 16);
	p->key.src.port = l4->source;
	p->key.dst.port = l4->dest;
	p->key.proto = ip->nexthdr;
	p->l4 = l2 + sizeof(*ip);
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
	cm_map4(p->key.src.addr, ip.saddr);
	cm_map4(p->key.dst.addr, ip.daddr);
	p->key.proto = ip.protocol;
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
	__builtin_memcpy(p->key.src.addr, &ip.saddr, 16);
	__builtin_memcpy(p->key.dst.addr, &ip.daddr, 16);
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
	p->key.proto = next;
	if (fragment)
		return cm_fragment(skb, p, ext.id,
				   ext.offset & bpf_htons(0xfff8));
	return cm_read_ports(skb, p);
}

/* Reads a packet whose network header begins l2 bytes in; 0 means that it is
 * none of ours. */
static __always_inline int cm_read_packet(struct __sk_buff *skb, __u32 l2,
					  struct cm_packet *p)
{
	p->l3 = l2;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return cm_read_plain4(skb, l2, p) || cm_read4(skb, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		p->v6 = 1;
		return cm_read_plain6(skb, l2, p) || cm_read6(skb, p);
	}
	return 0;
}

#endif
