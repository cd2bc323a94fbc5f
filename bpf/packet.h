/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the per-packet programs keep. */
#ifndef CM_PACKET_H
#define CM_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include "sticky.h"

struct cm_ports {
	__u16 src;
	__u16 dst;
};

/* cm_flow_key is what a packet says: addresses, ports, protocol. It is short for
 * both families, because hashing it is most of the cost of a look-up: an IPv4
 * address is there as it is, an IPv6 address as a digest, and the flow itself
 * holds what was digested. */
struct cm_flow_key {
	__u64 src;
	__u64 dst;
	struct cm_ports ports;
	__u8 proto;
	__u8 v6;
	__u16 pad;
};

/* cm_flow is what that packet becomes. A connection has two of them, one per
 * direction. */
struct cm_flow {
	struct cm_endpoint src;
	struct cm_endpoint dst;
	__u16 cluster; /* of the backend */
	__u8 flags;
	__u8 pad;
	__u16 addresses; /* what the change of addresses adds to a sum */
	__u16 all; /* and that of addresses and ports */
	__u32 was[8]; /* source and destination of an IPv6 packet before */
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

/* cm_device says how to treat what enters by a device. The addresses are the
 * node's own, v4-mapped the first, all zero where it has none. */
struct cm_device {
	__u32 addr4[4];
	__u32 addr6[4];
	__u32 flags;
};

#define CM_DEVICE_SNAT 1 /* clients are outside: replies must come back here */
#define CM_DEVICE_XDP 2 /* takes packets from the XDP program of another device */

/* cm_seen says by a hash of address and port who was ever asked as a frontend, and
 * who answers as a backend. Where it says no there is no flow, and one load told
 * so; where it says yes there may be. Bytes and not bits, because a byte is
 * written without reading its neighbours. */
#define CM_SEEN 65536

struct cm_seen {
	__u8 asked[CM_SEEN];
	__u8 answers[CM_SEEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct cm_flow_key);
	__type(value, struct cm_flow);
	__uint(max_entries, 1);
} cm_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct cm_seen);
	__uint(max_entries, 1);
} cm_seen SEC(".maps");

/* cm_draft is what a new connection is made of, kept here because the stack is too
 * small for it. Nothing else of ours runs on a CPU meanwhile. */
struct cm_draft {
	struct cm_flow flow;
	struct cm_flow_key key;
	struct cm_endpoint backend;
	struct cm_endpoint client; /* as the backend sees it */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct cm_draft);
	__uint(max_entries, 1);
} cm_drafts SEC(".maps");

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

/* cm_packet is what the programs know of a packet. l3 and l4 say where its headers
 * begin; l4 is 0 in a fragment that has no ports of its own. */
struct cm_packet {
	struct cm_endpoint src;
	struct cm_endpoint dst;
	__u32 l3;
	__u32 l4;
	__u8 proto;
	__u8 tcp; /* flags */
	__u8 error; /* an ICMP error; the rest is of the packet it is about, turned round */
	__u8 pad;
};

#define CM_FIN 0x01
#define CM_SYN 0x02
#define CM_RST 0x04
#define CM_ACK 0x10

/* Ports for sources that are the node's own. They lie above the range from which
 * Linux takes the ports of its own connections. */
#define CM_SNAT_FIRST 61000
#define CM_SNAT_PORTS 4536
#define CM_SNAT_TRIES 16

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

static __always_inline void cm_map4(__u32 *addr, __u32 v4)
{
	addr[0] = 0;
	addr[1] = 0;
	addr[2] = bpf_htonl(0xffff);
	addr[3] = v4;
}

static __always_inline int cm_zero(const __u32 *a)
{
	return !(a[0] | a[1] | a[2] | a[3]);
}

static __always_inline int cm_same(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* The digest of an address in a key. For IPv6 it is a sum of products of its words,
 * each shifted by a secret of this node: which addresses share a digest cannot be
 * known without that. */
static __always_inline __u64 cm_digest(const __u32 *addr, int v6, __u64 salt)
{
	__u32 low = salt, high = salt >> 32;

	if (!v6)
		return addr[3];
	return (__u64)(__u32)(addr[0] + low) * (__u32)(addr[1] + high) +
	       (__u64)(__u32)(addr[2] + ~high) *
		       (__u32)(addr[3] + (low ^ high));
}

static __always_inline void cm_make_key(struct cm_flow_key *key,
					const struct cm_endpoint *src,
					const struct cm_endpoint *dst,
					__u8 proto, int v6)
{
	__u64 salt = v6 ? cm_salt() : 0;

	key->src = cm_digest(src->addr, v6, salt);
	key->dst = cm_digest(dst->addr, v6, salt);
	key->ports.src = src->port;
	key->ports.dst = dst->port;
	key->proto = proto;
	key->v6 = v6;
	key->pad = 0;
}

/* The flow of a key, unless it is of other addresses with the same digests. */
static __always_inline struct cm_flow *
cm_lookup_flow(const struct cm_flow_key *key, const __u32 *src,
	       const __u32 *dst, int v6)
{
	struct cm_flow *f = bpf_map_lookup_elem(&cm_flows, key);

	if (f && v6 && !(cm_same(f->was, src) && cm_same(f->was + 4, dst)))
		return 0;
	return f;
}

static __always_inline struct cm_flow *
cm_flow_between(const struct cm_endpoint *src, const struct cm_endpoint *dst,
		__u8 proto, int v6)
{
	struct cm_flow_key key;

	cm_make_key(&key, src, dst, proto, v6);
	return cm_lookup_flow(&key, src->addr, dst->addr, v6);
}

static __always_inline __u32 cm_spot(__u64 digest, __u16 port)
{
	return ((digest ^ ((__u64)port << 40)) * 0x9e3779b97f4a7c15ULL) >> 48;
}

static __always_inline struct cm_seen *cm_seen_all(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cm_seen, &zero);
}

/* Notes in cm_seen what a flow is about to be kept for. */
static __always_inline void cm_see(const struct cm_flow_key *key, int forward)
{
	struct cm_seen *seen = cm_seen_all();

	if (!seen)
		return;
	if (forward)
		seen->asked[cm_spot(key->dst, key->ports.dst) & (CM_SEEN - 1)] = 1;
	else
		seen->answers[cm_spot(key->src, key->ports.src) & (CM_SEEN - 1)] = 1;
}

/* Can there be a flow for what enters or leaves? What enters either asks a frontend
 * or answers to a port that this node gave; what leaves answers. */
static __always_inline int cm_maybe(const struct cm_flow_key *key, int egress)
{
	struct cm_seen *seen = cm_seen_all();

	if (!seen)
		return 1;
	if (egress)
		return seen->answers[cm_spot(key->src, key->ports.src) & (CM_SEEN - 1)];
	return seen->asked[cm_spot(key->dst, key->ports.dst) & (CM_SEEN - 1)] ||
	       bpf_ntohs(key->ports.dst) >= CM_SNAT_FIRST;
}

/* Is this the first packet of a new connection, although the flow of an old one
 * has the same addresses and ports? */
static __always_inline int cm_anew(__u8 proto, __u8 tcp, const struct cm_flow *f)
{
	if (!(f->flags & CM_FLOW_FORWARD))
		return 0;
	if (proto == IPPROTO_TCP)
		return (tcp & (CM_SYN | CM_ACK)) == CM_SYN &&
		       (f->flags & CM_FLOW_CLOSING || cm_withdrawn(f->cluster));
	return cm_withdrawn(f->cluster);
}

/* Sums of 16 bits, as checksums are made of, in any order of bytes. */
static __always_inline __u16 cm_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* What a sum grows by where an address, or a pair of ports, becomes another. */
static __always_inline __u64 cm_growth(const __u32 *from, const __u32 *to, int v6)
{
	__u64 sum = (__u64)(__u32)~from[3] + to[3];

	if (v6)
		sum += (__u64)(__u32)~from[0] + to[0] + (__u32)~from[1] + to[1] +
		       (__u32)~from[2] + to[2];
	return sum;
}

/* A bare sum, and a checksum, after what it covers grew. */
static __always_inline __u16 cm_grown(__u16 old, __u16 growth)
{
	__u32 sum = (__u32)old + growth;

	return sum + (sum >> 16);
}

static __always_inline __u16 cm_checksum(__u16 old, __u16 growth)
{
	return ~cm_grown(~old, growth);
}

/* Keeps the draft's flow for packets from src to dst. */
static __always_inline long cm_keep(struct cm_draft *d,
				    const struct cm_endpoint *src,
				    const struct cm_endpoint *dst, __u8 proto,
				    int v6, __u64 how)
{
	struct cm_flow *flow = &d->flow;
	__u64 growth = cm_growth(src->addr, flow->src.addr, v6) +
		       cm_growth(dst->addr, flow->dst.addr, v6);

	cm_make_key(&d->key, src, dst, proto, v6);
	cm_see(&d->key, flow->flags & CM_FLOW_FORWARD);
	flow->addresses = cm_fold(growth);
	growth += (__u16)~src->port + flow->src.port;
	growth += (__u16)~dst->port + flow->dst.port;
	flow->all = cm_fold(growth);
	__builtin_memcpy(flow->was, src->addr, 16);
	__builtin_memcpy(flow->was + 4, dst->addr, 16);
	return bpf_map_update_elem(&cm_flows, &d->key, flow, how);
}

#endif
