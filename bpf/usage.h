/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How full the maps are that the process of the devices keeps, told to the agent.
 * The agent makes the map, because it can open nothing that is pinned later. */
#ifndef CM_USAGE_H
#define CM_USAGE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* cm_usage says of one map when its entries were counted, on the monotonic clock
 * in ns, and what came out. */
struct cm_usage {
	__u64 counted;
	__u32 entries;
	__u32 capacity;
};

#define CM_USAGE_MAPS 8 /* three are used: flows, fragments, devices */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cm_usage);
	__uint(max_entries, CM_USAGE_MAPS);
} cm_usage SEC(".maps");

#endif
