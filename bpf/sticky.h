/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Choices that depend on who asks: session affinity and consistent hashing. A
 * frontend without either never comes here. */
#ifndef CM_STICKY_H
#define CM_STICKY_H

#include "select.h"

/* How many records are searched for a remembered backend. In a larger set it may
 * have moved by half as many places at most. */
#define CM_SEARCH 256
#define CM_STRIDE 16

#define CM_EEXIST 17

static __always_inline __u64 cm_half(const __u32 *addr)
{
	return addr[0] | (__u64)addr[1] << 32;
}

/* The finalizer of SplitMix64 with its increment. Together with cm_hash_client,
 * cm_step and cm_scale it decides which slot of a table a client has, on every
 * node and in every version alike: it must never change. */
static __always_inline __u64 cm_mix(__u64 x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* The seed of a client that is known by 16 bytes, an address as it is in memory.
 * ClientSlot of package layout follows it. */
static __always_inline __u64 cm_hash_client(__u64 first, __u64 second)
{
	return cm_mix(cm_mix(first) ^ second);
}

static __always_inline __u64 cm_hash_address(const __u32 *addr)
{
	return cm_hash_client(cm_half(addr), cm_half(addr + 2));
}

static __always_inline __u64 cm_salt(void)
{
	__u32 zero = 0;
	struct cm_settings *s = bpf_map_lookup_elem(&cm_settings, &zero);

	return s ? s->salt : 0;
}

/* Whole seconds, so that a timeout can be late by one but not early. */
static __always_inline __u32 cm_seconds(void)
{
	return bpf_ktime_get_ns() / 1000000000ULL;
}

static __always_inline struct cm_affinity *
cm_affinity_of(const struct cm_affinity_key *key)
{
	struct cm_affinity *a = bpf_map_lookup_elem(&cm_affinity, key);

	return a ? a : bpf_map_lookup_elem(&cm_affinity, key);
}

/* How many records after index the backend with this address is the next one of
 * frontend id, CM_STRIDE if not within as many. Without branches in the loop, and
 * a function of its own, the verifier is through with it soon. */
__attribute__((noinline)) __u32 cm_look(__u32 index, __u32 id, __u64 first,
					__u64 second, __u32 port)
{
	struct cm_backend *b;
	int i;

	for (i = 0; i < CM_STRIDE; i++) {
		b = bpf_map_lookup_elem(&cm_slab, &index);
		if (!b)
			break;
		if (!((cm_half(b->addr) ^ first) | (cm_half(b->addr + 2) ^ second) |
		      (b->port ^ port) | (b->frontend ^ id)))
			return i;
		index++;
	}
	return CM_STRIDE;
}

/* The slot in the selected run that has the backend e of frontend id, or one
 * beyond the run if none was found. It usually is where it was; else the search
 * goes over the whole set, or in a large one over what is around the place. */
static __always_inline __u32 cm_search(__u64 header, __u32 id,
				       const struct cm_endpoint *e, __u32 slot)
{
	__u32 base = cm_offset(header), n = cm_selected(header), at;
	__u64 first = cm_half(e->addr), second = cm_half(e->addr + 2);
	struct cm_backend *b = cm_record(base + slot, id);
	int i;

	if (b && cm_half(b->addr) == first && cm_half(b->addr + 2) == second &&
	    b->port == e->port)
		return slot;
	slot = n <= CM_SEARCH || slot < CM_SEARCH / 2 ? 0 : slot - CM_SEARCH / 2;
	for (i = 0; i < CM_SEARCH / CM_STRIDE && slot < n; i++) {
		at = cm_look(base + slot, id, first, second, e->port);
		if (at < CM_STRIDE)
			return slot + at;
		slot += CM_STRIDE;
	}
	return ~0U;
}

/* The slab index of the backend that a client has at frontend id, 0 if it has
 * none, or none that may be used any more. Using it prolongs it. The entry is
 * changed in place, because replacing it could make a look-up on another CPU
 * miss; two CPUs that do so at once leave a mixture at worst, which no search
 * finds. */
__attribute__((noinline)) __u32 cm_remembered(__u32 id, __u64 first,
					      __u64 second, __u32 kind)
{
	struct cm_affinity_key key = {
		.client = { first, second }, .frontend = id, .kind = kind,
	};
	struct cm_affinity *a = cm_affinity_of(&key);
	__u64 header = cm_header(id);
	struct cm_region *r = cm_region_of(header, id);
	struct cm_endpoint backend;
	struct cm_backend *b;
	__u32 slot, now;

	if (!a || !r)
		return 0;
	now = cm_seconds();
	if (now - a->used > r->sticky) {
		cm_explain(expired);
		return 0;
	}
	backend = a->backend;
	slot = cm_search(header, id, &backend, a->slot);
	b = slot < cm_selected(header) ?
		    cm_record(cm_offset(header) + slot, id) : 0;
	if (!b || cm_withdrawn(b->cluster)) {
		cm_explain(moved);
		return 0;
	}
	if (a->used != now)
		a->used = now;
	if (a->slot != slot)
		a->slot = slot;
	cm_explain(remembered);
	return cm_offset(header) + slot;
}

/* Remembers that the client has the backend at a slab index from now on. Returns
 * that index, or 0 if another CPU was first. */
__attribute__((noinline)) __u32 cm_remember(__u32 id, __u64 first, __u64 second,
					    __u32 kind, __u32 index)
{
	struct cm_affinity_key key = {
		.client = { first, second }, .frontend = id, .kind = kind,
	};
	struct cm_affinity value = { .used = cm_seconds() };
	struct cm_backend *b = cm_record(index, id);
	struct cm_affinity *a;

	if (!b)
		return index;
	cm_chosen(b, &value.backend);
	value.slot = index - cm_offset(cm_header(id));
	a = cm_affinity_of(&key);
	if (a) {
		*a = value;
		return index;
	}
	switch (bpf_map_update_elem(&cm_affinity, &key, &value, BPF_NOEXIST)) {
	case -CM_EEXIST:
		return 0;
	case 0:
		return index;
	}
	cm_explain(unremembered);
	return index;
}

/* cm_choose for a frontend that is sticky: the client's backend, else the one
 * that seed stands for. */
static __always_inline __u32 cm_choose_sticky(__u32 id, __u64 first,
					      __u64 second, __u32 kind,
					      __u64 seed, __u32 v6)
{
	__u32 index = cm_remembered(id, first, second, kind), other;

	if (index)
		return index;
	index = cm_choose(id, seed, v6);
	if (!index || cm_remember(id, first, second, kind, index))
		return index;
	other = cm_remembered(id, first, second, kind);
	return other ? other : index;
}

/* The slab index of a backend for a client that is known by its address, 0 if there
 * is none. */
static __always_inline __u32
cm_choose_for_address(__u32 id, __u64 seed, const struct cm_endpoint *frontend,
		      const __u32 *client)
{
	__u64 header = cm_header(id);
	__u32 v6 = cm_v6(frontend->addr);

	if (header & CM_HEADER_CONSISTENT)
		seed = cm_hash_address(client);
	if (header & CM_HEADER_STICKY)
		return cm_choose_sticky(id, cm_half(client), cm_half(client + 2),
					CM_CLIENT_ADDRESS, seed, v6);
	return cm_choose(id, seed, v6);
}

#endif
