/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Conntrack: what does not depend on the family. */
#ifndef MILLRACE_CONNTRACK_H
#define MILLRACE_CONNTRACK_H

#include "parse.h"

/* A flow of which one end has closed lives this long without traffic: as long
 * as in the host's own conntrack. */
#define TCP_HALF_CLOSED_TIMEOUT 120

/* An entry's expiry is written when it moves by more than this: otherwise every
 * packet would dirty a cache line. */
#define EXPIRES_STEP NSEC_PER_SEC

/* How long a record in this state outlives its last packet. */
static __always_inline __u64 ct_timeout(const struct config *cfg, __u8 proto, __u8 state)
{
	__u32 seconds;

	if (proto == IPPROTO_TCP) {
		if (state == CT_ESTABLISHED)
			seconds = cfg->tcp_established_timeout;
		else if (state == CT_CLOSED)
			seconds = cfg->tcp_close_timeout;
		else if (state == CT_CLOSING)
			seconds = TCP_HALF_CLOSED_TIMEOUT;
		else
			seconds = cfg->tcp_syn_timeout;
	} else {
		seconds = state == CT_NEW ? cfg->udp_timeout : cfg->udp_stream_timeout;
	}
	return seconds * NSEC_PER_SEC;
}

/*
 * Whether an ACK confirms a SYN-ACK, or more after it: data that came along with
 * it, or an ACK at which the established map had no room. Who cannot see the
 * SYN-ACK guesses one of 2^32 numbers, and has one chance in 2^16.
 */
#define TCP_CONFIRM_WINDOW (1 << 16)

static __always_inline bool tcp_ack_confirms(__u32 ack, __u32 expected)
{
	return ack - expected < TCP_CONFIRM_WINDOW;
}

/* Whether a packet opens a TCP connection. */
static __always_inline bool tcp_opens(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN;
}

/* The established map of the family at hand, in ct_pressure and ct_limits. */
#define CT_TABLE (FAMILY == 6)

/*
 * How long after an insertion that found no room new flows are asked whether
 * there is some: longer than a handshake takes, so that those that were let in
 * have met a full map before the asking ends.
 */
#define CT_PRESSURE (10 * NSEC_PER_SEC)

/* Notes that an established map had no room for a flow. */
static __noinline void ct_note_full(__u32 table)
{
	struct ct_pressure *p = bpf_map_lookup_elem(&ct_pressure, &table);

	if (!p)
		return;
	p->until = bpf_ktime_get_coarse_ns() + CT_PRESSURE;
	__sync_fetch_and_add(&p->failures, 1);
}

/*
 * Whether new flows must see room before they are let in: the map was full just
 * now, and is as large as it may become. One that can still grow refuses
 * nobody; flows without room wait among the embryonic ones until it has grown.
 */
static __always_inline bool ct_is_pressed(__u32 table, __u64 now)
{
	const struct ct_pressure *p = bpf_map_lookup_elem(&ct_pressure, &table);
	const __u32 *at_limit;

	if (likely(!p || p->until <= now))
		return false;
	at_limit = bpf_map_lookup_elem(&ct_limits, &table);
	return at_limit && *at_limit;
}

/* Whether a record has a T1, a T2 of its own. */
static __always_inline bool ct_has_frontend_alias(__u16 flags)
{
	return flags & CT_DNAT;
}

static __always_inline bool ct_has_backend_alias(__u16 flags)
{
	return (flags & (CT_SNAT | CT_HAIRPIN)) == CT_SNAT;
}

#endif
