/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Moves entries of a conntrack map that is being replaced. Attached nowhere. */
#include "include/helpers.h"
#include "include/conntrack_move.h"

/* Returns how many entries were moved, and << 16 how many stay for want of room. */
SEC("tc")
int conntrack_move(struct __sk_buff *skb)
{
	struct ct_move_request request;

	if (bpf_skb_load_bytes(skb, CT_MOVE_REQUEST, &request, sizeof(request)))
		return 0;
	return request.family == 6 ? ct_move_v6(skb, &request) : ct_move_v4(skb, &request);
}

/* GPL, as the kernel demands of helpers used here; the source is dual. */
char _license[] SEC("license") = "Dual BSD/GPL";
