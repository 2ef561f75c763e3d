/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packet path. What differs by address family alone is written once, in
 * *_family.h, and compiled twice.
 */
#ifndef MILLRACE_PACKET_H
#define MILLRACE_PACKET_H

#include "checksum.h"
#include "config.h"
#include "conntrack.h"
#include "fastpath.h"
#include "flow.h"
#include "parse.h"

enum hook {
	HOOK_INGRESS, /* into the node */
	HOOK_EGRESS,  /* out of it */
};

#define FAMILY 4
#define IP_WORDS 1
#include "packet_family.h"
#undef FAMILY
#undef IP_WORDS
#undef IP_HLEN

#define FAMILY 6
#define IP_WORDS 4
#include "packet_family.h"
#undef FAMILY
#undef IP_WORDS
#undef IP_HLEN

/* Everything that is not for these programs: other protocols, other hosts, tags. */
static __always_inline bool is_foreign(const struct __sk_buff *skb)
{
	return skb->vlan_present || (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6));
}

/* A packet enters the node by a device of this kind. */
static __always_inline int ingress(struct __sk_buff *skb, __u8 device)
{
	const struct config *cfg;

	clear_finished(skb);
	/*
	 * A pod behind a bridge sends to the bridge's link address, which is not
	 * the port's: its packets are "another host's" here and yet for this one.
	 */
	if (is_foreign(skb) ||
	    (skb->pkt_type != PACKET_HOST && !(device == DEVICE_POD && skb->pkt_type == PACKET_OTHERHOST)))
		return PASS;
	cfg = config_get();
	if (!cfg)
		return PASS;
	return skb->protocol == bpf_htons(ETH_P_IP) ? ingress_v4(skb, cfg, device) : ingress_v6(skb, cfg, device);
}

/* A packet leaves the node by a device of this kind. */
static __always_inline int egress(struct __sk_buff *skb, __u8 device)
{
	const struct config *cfg;

	if (skb->tc_index == TC_INDEX_FINISHED) {
		skb->tc_index = 0;
		return PASS;
	}
	if (is_foreign(skb))
		return PASS;
	cfg = config_get();
	if (!cfg)
		return PASS;
	return skb->protocol == bpf_htons(ETH_P_IP) ? egress_v4(skb, cfg, device) : egress_v6(skb, cfg, device);
}

#endif
