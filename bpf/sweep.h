/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the process that ends connections tells the agent. The agent makes the
 * map, because it can open nothing that is pinned later. */
#ifndef CM_SWEEP_H
#define CM_SWEEP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* cm_sweeps says when the process last looked, on the monotonic clock in ns, and
 * how many sockets it has ended since the map was made. */
struct cm_sweeps {
	__u64 looked;
	__u64 tcp;
	__u64 udp;
	__u64 missed;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cm_sweeps);
	__uint(max_entries, 1);
} cm_sweeps SEC(".maps");

#endif
