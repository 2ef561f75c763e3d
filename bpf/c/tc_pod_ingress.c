/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets from a pod, on the host's side of its device. */
#include "include/helpers.h"
#include "include/packet.h"

SEC("tc")
int tc_pod_ingress(struct __sk_buff *skb)
{
	return ingress(skb, DEVICE_POD);
}

/* GPL, as the kernel demands of helpers used here; the source is dual. */
char _license[] SEC("license") = "Dual BSD/GPL";
