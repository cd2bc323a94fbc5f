/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps, as every object that shares them declares them. The loader pins them
 * by name, so that all programs work on the same ones. */
#ifndef CM_MAPS_H
#define CM_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "clustermesh.h"

/* The sizes of maps are placeholders; the loader sets them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct cm_frontend_key);
	__type(value, __u32);
	__uint(max_entries, 1);
} cm_frontends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} cm_headers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cm_backend);
	__uint(max_entries, 1);
} cm_slab SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cm_meta);
	__uint(max_entries, 1);
} cm_meta SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cm_cluster);
	__uint(max_entries, 1);
} cm_clusters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct cm_info);
	__uint(max_entries, 1);
} cm_info SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct cm_peer);
} cm_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct cm_reverse_key);
	__type(value, struct cm_endpoint);
	__uint(max_entries, 1);
} cm_reverse SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct cm_counters);
	__uint(max_entries, 1);
} cm_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct cm_reasons);
	__uint(max_entries, 1);
} cm_reasons SEC(".maps");

/* Choices by the cluster of the backend. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} cm_cluster_hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct cm_affinity_key);
	__type(value, struct cm_affinity);
	__uint(max_entries, 1);
} cm_affinity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cm_settings);
	__uint(max_entries, 1);
} cm_settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1);
} cm_events SEC(".maps");

/* No program declares these, but their BTF has to be in the object. */
const struct cm_region *const cm_region_type __attribute__((unused));
const struct cm_event *const cm_event_type __attribute__((unused));

#endif
