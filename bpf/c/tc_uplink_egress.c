/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets to the network. */
#include "include/helpers.h"
#include "include/packet.h"

SEC("tc")
int tc_uplink_egress(struct __sk_buff *skb)
{
	return egress(skb, DEVICE_UPLINK);
}

/* GPL, as the kernel demands of helpers used here; the source is dual. */
char _license[] SEC("license") = "Dual BSD/GPL";
