/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reports of single choices, for an operator who watches. */
#ifndef CM_EVENT_H
#define CM_EVENT_H

#include "maps.h"
#include "select.h"

/* Whether this choice is to be reported: off it costs one load. */
static __always_inline int cm_sampled(void)
{
	__u32 zero = 0, every;
	const volatile struct cm_settings *s =
		bpf_map_lookup_elem(&cm_settings, &zero);

	if (!s)
		return 0;
	every = s->sample;
	return every && !cm_scale(bpf_get_prandom_u32(), every);
}

/* backend is 0 if none was found. */
static __always_inline void cm_report(__u32 id, __u8 proto, __u64 netns,
				      const struct cm_endpoint *frontend,
				      const struct cm_backend *backend)
{
	struct cm_event *e =
		bpf_ringbuf_reserve(&cm_events, sizeof(*e), 0);

	if (!e) {
		cm_explain(unreported);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->netns = netns;
	e->id = id;
	e->frontend = *frontend;
	e->proto = proto;
	e->verdict = CM_EVENT_REFUSED;
	if (backend) {
		e->verdict = CM_EVENT_PICKED;
		e->cluster = backend->cluster;
		cm_chosen(backend, &e->backend);
	}
	bpf_ringbuf_submit(e, 0);
}

#endif
