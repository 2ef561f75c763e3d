/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One's complement arithmetic (RFC 1071, RFC 1624). Sums of 32-bit words in
 * packet order are as good as sums of 16-bit ones, once folded. */
#ifndef MILLRACE_CHECKSUM_H
#define MILLRACE_CHECKSUM_H

#include "helpers.h"

static __always_inline __u32 csum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)sum + (__u32)(sum >> 32);
}

/* The 16-bit sum, not complemented. */
static __always_inline __u16 csum_fold16(__u64 sum)
{
	__u32 s = csum_fold32(sum);

	s = (s & 0xffff) + (s >> 16);
	return (__u16)(s + (s >> 16));
}

/* The change to a sum when a word becomes another; add up in 64 bits. */
static __always_inline __u64 csum_diff(__u32 from, __u32 to)
{
	return (__u64)(__u32)~from + to;
}

/* A checksum field after the bytes under it changed by diff. */
static __always_inline __u16 csum_apply(__u16 check, __u64 diff)
{
	return ~csum_fold16((__u64)(__u16)~check + csum_fold32(diff));
}

#endif
