/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sendmsg(2) and sendto(2) with an address on a UDP socket. The kernel runs
 * the v4 program for a v4-mapped address: the v6 one never sees it.
 */
#include "sock.h"

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	__u8 proto = sock_proto(ctx);
	struct frontend_key_v4 key;
	struct backend_v4 to = {};

	if (proto != IPPROTO_UDP)
		return SOCK_PASS;
	sock_read_v4(ctx, &key, proto);
	if (sock_send_to_v4(ctx, &key, &to) == SOCK_TRANSLATE)
		sock_write_v4(ctx, &to.addr, to.port);
	return SOCK_PASS;
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	__u8 proto = sock_proto(ctx);
	struct frontend_key_v6 key;
	struct backend_v6 to = {};

	if (proto != IPPROTO_UDP)
		return SOCK_PASS;
	sock_read_v6(ctx, &key, proto);
	if (sock_send_to_v6(ctx, &key, &to) == SOCK_TRANSLATE)
		sock_write_v6(ctx, &to.addr, to.port);
	return SOCK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
