/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How the programs at TCX change a packet whose headers may lie anywhere, or whose
 * checksum may be in any state: by calls into the kernel. */
#ifndef CM_REWRITE_H
#define CM_REWRITE_H

#include <bpf/bpf_core_read.h>

#include "plain.h"

/* The kernel's own view of a packet says how far its checksum is, which decides how
 * it is changed. Where the kernel does not give it away (before Linux 6.2), calls
 * into the kernel change it. */
const volatile __u8 cm_can_see_checksum = 0;

struct sk_buff {
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *skb) __ksym __weak;

static __always_inline int cm_summed(struct __sk_buff *skb)
{
	struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);

	return BPF_CORE_READ_BITFIELD(kernel, ip_summed);
}

/* How an address counts in a checksum. That the kernel keeps a sum of the whole
 * packet in step with it is wrong for IPv6, where no other checksum evens the change
 * of the address itself out; there it is told that the address is no part. */
static __always_inline __u64 cm_in_pseudo_header(struct __sk_buff *skb, int v6)
{
	if (v6 && cm_can_see_checksum && cm_summed(skb) == CM_SUM_OF_PACKET)
		return 0;
	return BPF_F_PSEUDO_HDR;
}

/* The checksum difference of two pairs of addresses. */
static __always_inline __s64 cm_address_diff(int v6, const __u32 *old_src,
					     const __u32 *old_dst,
					     const __u32 *src, const __u32 *dst)
{
	__u32 from[8], to[8];

	if (v6) {
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
static __always_inline int cm_store_addresses(struct __sk_buff *skb, int v6,
					      __u32 l3, const __u32 *src,
					      const __u32 *dst, __s64 diff)
{
	__u32 both[8];

	if (v6) {
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
static __noinline int cm_rewrite(struct __sk_buff *skb,
				      const struct cm_packet *p,
				      const struct cm_flow *f, int v6)
{
	__u32 at = cm_checksum_at(p->proto);
	__u64 mangled = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	int ports = f->src.port != p->src.port ||
		    f->dst.port != p->dst.port;
	__s64 diff = cm_address_diff(v6, p->src.addr, p->dst.addr,
				     f->src.addr, f->dst.addr);

	if (p->l4 && at) {
		if (bpf_l4_csum_replace(skb, p->l4 + at, 0, diff,
					cm_in_pseudo_header(skb, v6) | mangled))
			return -1;
		if (ports &&
		    bpf_l4_csum_replace(skb, p->l4 + at, 0,
					cm_ports_diff(p->src.port,
						      p->dst.port,
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
	return cm_store_addresses(skb, v6, p->l3, f->src.addr, f->dst.addr, diff);
}

/* The packet inside the error had been translated, and its sender must find it
 * as it sent it. f is the flow of the packets that come back: what it turns the
 * destination into is what the inner source was, and the other way round.
 *
 * The checksum of the inner TCP or UDP header is left as it was: nobody can
 * verify it, because an error holds only the beginning of a packet. */
static __noinline int cm_rewrite_error(struct __sk_buff *skb,
					    const struct cm_packet *p,
					    const struct cm_flow *f, int v6)
{
	__u32 inner = p->l4 + 8, ports = inner + (v6 ? 40 : 20);
	__u32 outer[8], src[4], dst[4];
	__s64 diff;

	/* The inner packet: an IPv4 header's own checksum evens its change out,
	 * ICMPv6 sees the change. */
	diff = cm_address_diff(v6, p->dst.addr, p->src.addr, f->dst.addr,
			       f->src.addr);
	if (v6 && bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, 0))
		return -1;
	if (cm_store_addresses(skb, v6, inner, f->dst.addr, f->src.addr, diff))
		return -1;
	diff = cm_ports_diff(p->dst.port, p->src.port, f->dst.port,
			     f->src.port);
	if (bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, 0) ||
	    cm_store_ports(skb, ports, f->dst.port, f->src.port))
		return -1;

	/* The error itself: it goes to whom the inner packet came from. */
	if (v6) {
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
	diff = cm_address_diff(v6, src, dst,
			       cm_same(src, p->src.addr) ? f->src.addr : src,
			       f->dst.addr);
	if (v6 &&
	    bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff,
				cm_in_pseudo_header(skb, 1)))
		return -1;
	return cm_store_addresses(skb, v6, p->l3,
				  cm_same(src, p->src.addr) ? f->src.addr : src,
				  f->dst.addr, diff);
}

/* One hop less to live, as the stack would do; a packet that has none left is
 * dropped. */
static __always_inline int cm_age(struct __sk_buff *skb,
				  const struct cm_packet *p, int v6)
{
	__u16 old, new;
	__u8 ttl;

	if (v6) {
		if (bpf_skb_load_bytes(skb, p->l3 + 7, &ttl, 1) || ttl < 2)
			return -1;
		ttl--;
		return bpf_skb_store_bytes(skb, p->l3 + 7, &ttl, 1,
					   BPF_F_RECOMPUTE_CSUM);
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

#endif
