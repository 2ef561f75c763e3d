/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The dataplane's settings, and counters. */
#ifndef MILLRACE_CONFIG_H
#define MILLRACE_CONFIG_H

#include "maps.h"

/* The settings, or NULL when the programs must leave everything alone. */
static __always_inline const struct config *config_get(void)
{
	__u32 zero = 0;
	const struct config *c = bpf_map_lookup_elem(&config, &zero);

	return c && (c->flags & CONFIG_ENABLED) ? c : NULL;
}

/* Counts a packet that was dropped, or answered, or kept off the fast path. */
static __noinline void count(struct __sk_buff *skb, __u32 reason)
{
	struct counter_key key = { .ifindex = skb->ifindex, .reason = reason };
	struct counter *c = bpf_map_lookup_elem(&counters, &key);
	struct counter first = { .packets = 1, .bytes = skb->len };

	if (c) {
		c->packets++;
		c->bytes += skb->len;
		return;
	}
	bpf_map_update_elem(&counters, &key, &first, BPF_ANY);
}

static __always_inline int drop(struct __sk_buff *skb, __u32 reason)
{
	count(skb, reason);
	return DROP;
}

#endif
