/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From an address to one of the backends behind it: what every hook shares. */
#ifndef CM_SELECT_H
#define CM_SELECT_H

#include <bpf/bpf_endian.h>

#include "maps.h"

/* Draws of a backend: a few random ones, then an even sweep over the whole set.
 * The sweep advances by 1/CM_SWEEP of it, so in a set of up to CM_SWEEP
 * backends it meets every one, and in a larger set every cluster that holds
 * more than 1/CM_SWEEP of it (a cluster's records lie side by side). */
#define CM_RANDOM_DRAWS 5
#define CM_SWEEP 64

#define cm_count(field)                                                   \
	do {                                                              \
		__u32 zero = 0;                                           \
		struct cm_counters *c =                                   \
			bpf_map_lookup_elem(&cm_counters, &zero);         \
		if (c)                                                    \
			c->field++;                                       \
	} while (0)

static __always_inline int cm_equal(const struct cm_endpoint *a,
				    const struct cm_endpoint *b)
{
	return a->addr[3] == b->addr[3] && a->addr[2] == b->addr[2] &&
	       a->addr[1] == b->addr[1] && a->addr[0] == b->addr[0] &&
	       a->port == b->port;
}

/* 0 for a v4-mapped address, 1 for any other. Without branches, which in the loop
 * of cm_choose would cost the verifier time. */
static __always_inline __u32 cm_v6(const __u32 *addr)
{
	__u32 x = addr[0] | addr[1] | (addr[2] ^ bpf_htonl(0xffff));

	return (x | -x) >> 31;
}

/* The number of the frontend at e, 0 if there is none. The second look-up is
 * insurance: a hash look-up can miss while another CPU relinks the chain, and a
 * miss would send the client to an address that nobody answers. */
static __always_inline __u32 cm_find(const struct cm_endpoint *e, __u8 proto)
{
	struct cm_frontend_key key = {
		.addr = { e->addr[0], e->addr[1], e->addr[2], e->addr[3] },
		.port = e->port,
		.proto = proto,
	};
	__u32 *id = bpf_map_lookup_elem(&cm_frontends, &key);

	if (!id)
		id = bpf_map_lookup_elem(&cm_frontends, &key);
	return id ? *id : 0;
}

static __always_inline int cm_withdrawn(__u16 cluster)
{
	__u32 index = cluster;
	struct cm_cluster *c = bpf_map_lookup_elem(&cm_clusters, &index);

	return c && *(volatile __u32 *)&c->state == CM_CLUSTER_WITHDRAWN;
}

/* A linear congruential step; the caller uses the upper, better half. */
static __always_inline __u64 cm_step(__u64 seed)
{
	return seed * 6364136223846793005ULL + 1442695040888963407ULL;
}

/* One draw: the slab index at the point draw/2^32 of the current set, 0 if that
 * record cannot be used. Multiply and shift maps the 32-bit draw onto the set
 * without a division. The header is one word that is read once, so offset and
 * count belong together. The owner check catches a region that was given to
 * another frontend meanwhile. */
static __always_inline __u32 cm_draw(const volatile __u64 *header, __u32 id,
				     __u32 draw, __u32 v6)
{
	__u64 h = *header;
	__u32 n = (__u16)(h >> 16);
	__u32 index = (__u32)(h >> 32) + (__u32)(((__u64)draw * n) >> 32);
	struct cm_backend *b = bpf_map_lookup_elem(&cm_slab, &index);

	if (!n || !b || b->frontend != id || (cm_v6(b->addr) ^ v6))
		return 0;
	return cm_withdrawn(b->cluster) ? 0 : index;
}

/* The slab index of a usable backend of frontend id, 0 if the draws found none.
 * A global function, which the verifier checks once and not per caller's state. */
__attribute__((noinline)) __u32 cm_choose(__u32 id, __u64 seed, __u32 v6)
{
	const volatile __u64 *header = bpf_map_lookup_elem(&cm_headers, &id);
	__u32 draw = 0, index = 0;
	int i;

	if (!header || !(__u16)(*header >> 16))
		return 0;
	for (i = 0; i < CM_RANDOM_DRAWS + CM_SWEEP && !index; i++) {
		if (i < CM_RANDOM_DRAWS) {
			seed = cm_step(seed);
			draw = seed >> 32;
		} else {
			draw += (__u32)((1ULL << 32) / CM_SWEEP);
		}
		index = cm_draw(header, id, draw, v6);
	}
	if (i > 1)
		cm_count(retries);
	return index;
}

static __always_inline struct cm_backend *
cm_pick(__u32 id, __u64 seed, const struct cm_endpoint *frontend)
{
	__u32 index = cm_choose(id, seed, cm_v6(frontend->addr));

	return index ? bpf_map_lookup_elem(&cm_slab, &index) : 0;
}

static __always_inline void cm_chosen(const struct cm_backend *b,
				      struct cm_endpoint *e)
{
	e->addr[0] = b->addr[0];
	e->addr[1] = b->addr[1];
	e->addr[2] = b->addr[2];
	e->addr[3] = b->addr[3];
	e->port = b->port;
	e->pad = 0;
}

#endif
