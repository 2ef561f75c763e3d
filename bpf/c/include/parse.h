/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading headers: what does not depend on the family. */
#ifndef MILLRACE_PARSE_H
#define MILLRACE_PARSE_H

#include "config.h"

enum parsed {
	PARSED_OTHER,	   /* nothing for these programs: pass */
	PARSED_FLOW,	   /* TCP or UDP, ports known */
	PARSED_ICMP_ERROR, /* an error about another packet */
};

enum fragment_place {
	FRAGMENT_NONE,	/* a whole packet */
	FRAGMENT_FIRST, /* carries the ports */
	FRAGMENT_LATER, /* does not */
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define TCP_CHECK_OFF offsetof(struct tcphdr, check)
#define UDP_CHECK_OFF offsetof(struct udphdr, check)

/* Enough for all headers read by direct access. */
#define PULL_LEN 192U

/* Brings the headers into the linear part. */
static __noinline int pull_headers(struct __sk_buff *skb)
{
	__u32 len = skb->len;

	return bpf_skb_pull_data(skb, len < PULL_LEN ? len : PULL_LEN);
}

static __always_inline bool is_linear(const struct __sk_buff *skb)
{
	return (__u32)(skb->data_end - skb->data) >= skb->len;
}

#endif
