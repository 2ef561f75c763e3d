/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The last close(2) of a socket: what it left in connected_vN goes. */
#include "sock.h"

#define AF_INET6 10

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	__u64 cookie;

	if (ctx->type != SOCK_STREAM && ctx->type != SOCK_DGRAM)
		return SOCK_PASS;
	cookie = bpf_get_socket_cookie(ctx);
	connected_delete_v4(cookie); /* a v6 socket's peer may be v4-mapped */
	if (ctx->family == AF_INET6)
		connected_delete_v6(cookie);
	return SOCK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
