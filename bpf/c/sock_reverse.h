/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where the kernel tells a program its peer, the backend is exchanged for the
 * frontend that was dialled. This does not ask whether the dataplane is
 * enabled: a socket that was translated stays so.
 */
#ifndef MILLRACE_SOCK_REVERSE_H
#define MILLRACE_SOCK_REVERSE_H

#include "sock.h"

static __always_inline int sock_reverse_v4(struct bpf_sock_addr *ctx)
{
	struct frontend_key_v4 from, frontend = {};

	sock_read_v4(ctx, &from, 0);
	if (sock_translate_back_v4(ctx, &from, &frontend))
		sock_write_v4(ctx, &frontend.addr, frontend.port);
	return SOCK_PASS;
}

static __always_inline int sock_reverse_v6(struct bpf_sock_addr *ctx)
{
	struct frontend_key_v6 from, frontend = {};

	if (sock_is_v4_mapped(ctx)) {
		struct frontend_key_v4 from4 = { .addr.w[0] = ctx->user_ip6[3], .port = ctx->user_port };
		struct frontend_key_v4 frontend4 = {};

		if (sock_translate_back_v4(ctx, &from4, &frontend4)) {
			ctx->user_ip6[3] = frontend4.addr.w[0];
			ctx->user_port = frontend4.port;
		}
		return SOCK_PASS;
	}
	sock_read_v6(ctx, &from, 0);
	if (sock_translate_back_v6(ctx, &from, &frontend))
		sock_write_v6(ctx, &frontend.addr, frontend.port);
	return SOCK_PASS;
}

#endif
