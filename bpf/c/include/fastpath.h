/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that these programs sent on themselves. */
#ifndef MILLRACE_FASTPATH_H
#define MILLRACE_FASTPATH_H

#include "flow.h"

/*
 * tc_index of a packet that is finished: it was translated and redirected by an
 * ingress program, and the egress program of the device it leaves by must let
 * it through. It survives bpf_redirect, and a veth pair too, so that a packet
 * that enters with it has it removed: it cannot be brought from outside.
 */
#define TC_INDEX_FINISHED 0x4d52

static __always_inline void clear_finished(struct __sk_buff *skb)
{
	if (unlikely(skb->tc_index == TC_INDEX_FINISHED))
		skb->tc_index = 0;
}

/* Sends a finished packet out of a device, past the stack. */
static __always_inline int redirect_finished(struct __sk_buff *skb, __u32 ifindex)
{
	skb->tc_index = TC_INDEX_FINISHED;
	return bpf_redirect(ifindex, 0);
}

/* Sends a finished packet back to where it came from; with BPF_F_INGRESS that is the host. */
static __always_inline int reflect_finished(struct __sk_buff *skb, __u64 flags)
{
	void *data = (void *)(long)skb->data;
	struct ethhdr *eth = data;
	__u8 mac[ETH_ALEN];

	if (data + sizeof(*eth) > (void *)(long)skb->data_end)
		return drop(skb, REASON_REWRITE);
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	skb->tc_index = TC_INDEX_FINISHED;
	return bpf_redirect(skb->ifindex, flags);
}

#endif
