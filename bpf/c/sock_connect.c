/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* connect(2): TCP, and UDP sockets that are given a peer. */
#include "sock.h"

/* Set by the loader where bpf_set_retval exists (5.18). */
const volatile bool have_set_retval = false;

static __always_inline int refuse(void)
{
	/* Left alone, the SYN is answered with RST: the same, a little later. */
	if (!have_set_retval)
		return SOCK_PASS;
	sock_count(REASON_NO_BACKEND);
	bpf_set_retval(-ECONNREFUSED);
	return SOCK_REJECT;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	__u8 proto = sock_proto(ctx);
	struct frontend_key_v4 key;
	struct backend_v4 to = {};

	if (!proto)
		return SOCK_PASS;
	sock_read_v4(ctx, &key, proto);
	switch (sock_connect_to_v4(ctx, &key, &to)) {
	case SOCK_TRANSLATE:
		sock_write_v4(ctx, &to.addr, to.port);
		return SOCK_PASS;
	case SOCK_REFUSE:
		return refuse();
	}
	return SOCK_PASS;
}

static __always_inline int connect_v4_mapped(struct bpf_sock_addr *ctx, __u8 proto)
{
	struct frontend_key_v4 key = { .addr.w[0] = ctx->user_ip6[3], .port = ctx->user_port, .proto = proto };
	struct backend_v4 to = {};

	switch (sock_connect_to_v4(ctx, &key, &to)) {
	case SOCK_TRANSLATE:
		ctx->user_ip6[3] = to.addr.w[0];
		ctx->user_port = to.port;
		return SOCK_PASS;
	case SOCK_REFUSE:
		return refuse();
	}
	return SOCK_PASS;
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	__u8 proto = sock_proto(ctx);
	struct frontend_key_v6 key;
	struct backend_v6 to = {};

	if (!proto)
		return SOCK_PASS;
	if (sock_is_v4_mapped(ctx))
		return connect_v4_mapped(ctx, proto);
	sock_read_v6(ctx, &key, proto);
	switch (sock_connect_to_v6(ctx, &key, &to)) {
	case SOCK_TRANSLATE:
		sock_write_v6(ctx, &to.addr, to.port);
		return SOCK_PASS;
	case SOCK_REFUSE:
		return refuse();
	}
	return SOCK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
