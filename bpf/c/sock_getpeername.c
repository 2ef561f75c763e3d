/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* getpeername(2). */
#include "sock_reverse.h"

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	return sock_reverse_v4(ctx);
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	return sock_reverse_v6(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
