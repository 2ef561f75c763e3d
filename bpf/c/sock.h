/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services at the socket: the caller's address is exchanged for a backend's
 * before the first packet, and back where the kernel reports a peer. Nothing
 * evicts what a socket was given, and it goes when the socket goes:
 *   connected_vN  the peer of a connected socket, in the slot of its cookie:
 *                 creating socket storage in every connect would cost 800 ns.
 *                 The sock_release program frees it.
 *   spilled_vN    the same for sockets whose slot another one has.
 *   sockets_vN    socket storage: the peers of unconnected UDP sockets, and
 *                 of the sockets that spilled_vN has no room for.
 * Only a socket's own calls touch what belongs to it, and the kernel holds its
 * lock meanwhile.
 *
 * Whatever these programs do not translate, the packet programs do: leaving a
 * call alone is always correct.
 */
#ifndef MILLRACE_SOCK_H
#define MILLRACE_SOCK_H

#include "include/helpers.h"
#include "include/checksum.h"
#include "include/config.h"

#ifndef __maybe_unused
#define __maybe_unused __attribute__((unused))
#endif
#define ECONNREFUSED 111
#define SOCK_STREAM 1
#define SOCK_DGRAM 2

/* Return values of the programs. */
#define SOCK_REJECT 0
#define SOCK_PASS 1

/* What is to be done with a call. */
enum sock_verdict {
	SOCK_LEAVE,	/* as the caller made it */
	SOCK_TRANSLATE, /* to the backend found */
	SOCK_REFUSE,	/* a connect that nobody can answer */
};

/* The protocol by which frontends are known, or 0 for one they do not have. */
static __always_inline __u8 sock_proto(const struct bpf_sock_addr *ctx)
{
	if (ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP)
		return IPPROTO_TCP;
	if (ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP)
		return IPPROTO_UDP;
	return 0;
}

/* Set by the loader where bpf_skc_to_mptcp_sock exists (5.19). */
const volatile bool have_mptcp_sock = false;

/*
 * Whether the socket is one of the kernel's own below an MPTCP socket. Nobody
 * can ask it for its peer, and its release is not seen.
 */
static __always_inline bool sock_is_subflow(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return have_mptcp_sock && sk && bpf_skc_to_mptcp_sock(sk);
}

static __always_inline bool sock_is_connected(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && sk->state == BPF_TCP_ESTABLISHED;
}

/* Whether a v6 call is really about the IPv4 address in its last word. */
static __always_inline bool sock_is_v4_mapped(const struct bpf_sock_addr *ctx)
{
	return ctx->user_ip6[0] == 0 && ctx->user_ip6[1] == 0 && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

/* Counts a call that was answered in the backend's place. */
static __noinline __maybe_unused void sock_count(__u32 reason)
{
	struct counter_key key = { .ifindex = 0, .reason = reason };
	struct counter *c = bpf_map_lookup_elem(&counters, &key);
	struct counter first = { .packets = 1 };

	if (c)
		c->packets++;
	else
		bpf_map_update_elem(&counters, &key, &first, BPF_ANY);
}

#define FAMILY 4
#define IP_WORDS 1
#include "sock_family.h"
#undef FAMILY
#undef IP_WORDS
#define FAMILY 6
#define IP_WORDS 4
#include "sock_family.h"
#undef FAMILY
#undef IP_WORDS

#endif
