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
#define CM_STEPS 8

#define cm_count(field)                                                   \
	do {                                                              \
		__u32 zero = 0;                                           \
		struct cm_counters *c =                                   \
			bpf_map_lookup_elem(&cm_counters, &zero);         \
		if (c)                                                    \
			c->field++;                                       \
	} while (0)

#define cm_explain(field)                                                 \
	do {                                                              \
		__u32 zero = 0;                                           \
		struct cm_reasons *c =                                    \
			bpf_map_lookup_elem(&cm_reasons, &zero);          \
		if (c)                                                    \
			c->field++;                                       \
	} while (0)

/* A choice of a backend in this cluster. */
static __always_inline void cm_count_hit(__u16 cluster)
{
	__u32 index = cluster;
	__u64 *n = bpf_map_lookup_elem(&cm_cluster_hits, &index);

	if (n)
		++*n;
	else
		cm_count(hits);
}

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
static __always_inline __u32 cm_find(const struct cm_endpoint *e, __u8 proto,
				     __u8 scope)
{
	struct cm_frontend_key key = {
		.addr = { e->addr[0], e->addr[1], e->addr[2], e->addr[3] },
		.port = e->port,
		.proto = proto,
		.scope = scope,
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

/* Multiply and shift maps a 32-bit draw onto 0 to n-1 without a division. */
static __always_inline __u32 cm_scale(__u32 draw, __u32 n)
{
	return (__u32)(((__u64)draw * n) >> 32);
}

static __always_inline __u32 cm_offset(__u64 header)
{
	return (__u32)(header >> 32) & CM_OFFSET_MASK;
}

static __always_inline __u32 cm_selected(__u64 header)
{
	return (__u16)(header >> 16);
}

/* The header of a frontend, one word that is read once: what comes out of one
 * reading belongs together. 0 for no frontend. */
static __always_inline __u64 cm_header(__u32 id)
{
	const volatile __u64 *header = bpf_map_lookup_elem(&cm_headers, &id);

	return header ? *header : 0;
}

/* A record of frontend id. The owner check catches a region that was given to
 * another frontend meanwhile. */
static __always_inline struct cm_backend *cm_record(__u32 index, __u32 id)
{
	struct cm_backend *b = bpf_map_lookup_elem(&cm_slab, &index);

	return b && b->frontend == id ? b : 0;
}

static __always_inline int cm_usable(const struct cm_backend *b, __u32 v6)
{
	return !(cm_v6(b->addr) ^ v6) && !cm_withdrawn(b->cluster);
}

static __always_inline struct cm_region *cm_region_of(__u64 header, __u32 id)
{
	__u32 index = cm_offset(header) - 1;
	struct cm_region *r = bpf_map_lookup_elem(&cm_slab, &index);

	return r && r->frontend == id ? r : 0;
}

/* The slot that the table of a consistent frontend has for a draw. What nobody
 * would write gives a slot beyond the set. */
static __always_inline __u32 cm_table_slot(__u64 header, __u32 id, __u32 draw)
{
	struct cm_region *r = cm_region_of(header, id);
	struct cm_table *t;
	__u32 index, slot;

	if (!r)
		return ~0U;
	slot = cm_scale(draw, r->slots);
	index = cm_offset(header) + r->total + slot / CM_TABLE_SLOTS;
	t = bpf_map_lookup_elem(&cm_slab, &index);
	return t ? t->slot[slot % CM_TABLE_SLOTS] : ~0U;
}

/* One draw: the slab index of the backend that seed stands for in the current
 * set, 0 if that one cannot be used. */
static __always_inline __u32 cm_draw(__u64 header, __u32 id, __u64 seed, __u32 v6)
{
	__u32 n = cm_selected(header), slot, index;
	struct cm_backend *b;

	if (header & CM_HEADER_CONSISTENT)
		slot = cm_table_slot(header, id, seed >> 32);
	else
		slot = cm_scale(seed >> 32, n);
	if (slot >= n)
		return 0;
	index = cm_offset(header) + slot;
	b = cm_record(index, id);
	if (b && b->alias && (__u32)(cm_step(~seed) >> 32) >= b->threshold) {
		index = cm_offset(header) + (__u16)(slot + b->alias);
		b = cm_record(index, id);
	}
	return b && cm_usable(b, v6) ? index : 0;
}

/* The first usable backend in CM_STEPS even steps from a draw on, 0 if there is
 * none: better some backend than none, so weights do not count here. A function of
 * its own is cheaper to verify than one long loop. */
__attribute__((noinline)) __u32 cm_sweep(__u32 id, __u32 draw, __u32 v6)
{
	struct cm_backend *b;
	__u32 index;
	__u64 header;
	int i;

	for (i = 0; i < CM_STEPS; i++) {
		draw += (__u32)((1ULL << 32) / CM_SWEEP);
		header = cm_header(id);
		index = cm_offset(header) + cm_scale(draw, cm_selected(header));
		b = cm_record(index, id);
		if (b && cm_selected(header) && cm_usable(b, v6))
			return index;
	}
	return 0;
}

/* The slab index of a usable backend of frontend id, 0 if the draws found none.
 * The same seed finds the same backend in the same set. A global function, which
 * the verifier checks once and not per caller's state. */
__attribute__((noinline)) __u32 cm_choose(__u32 id, __u64 seed, __u32 v6)
{
	__u64 header = cm_header(id);
	__u32 index;
	int i;

	if (!cm_selected(header))
		return 0;
	seed = cm_step(seed);
	index = cm_draw(header, id, seed, v6);
	if (index)
		return index;
	cm_count(retries);
	for (i = 1; i < CM_RANDOM_DRAWS; i++) {
		seed = cm_step(seed);
		index = cm_draw(cm_header(id), id, seed, v6);
		if (index)
			return index;
	}
	cm_explain(swept);
	for (i = 0; i < CM_SWEEP && !index; i += CM_STEPS)
		index = cm_sweep(id, (seed >> 32) + (__u32)i * (__u32)((1ULL << 32) / CM_SWEEP), v6);
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
