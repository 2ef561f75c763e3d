/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* recvmsg(2) and recvfrom(2) with an address on a UDP socket, connected or not. */
#include "sock_reverse.h"

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return sock_reverse_v4(ctx);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return sock_reverse_v6(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
