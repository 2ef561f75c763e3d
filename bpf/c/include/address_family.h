/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses. */

static __always_inline bool FAM(ip_equal)(const struct FAM(ip) *a, const struct FAM(ip) *b)
{
#if FAMILY == 4
	return a->w[0] == b->w[0];
#else
	return !((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) | (a->w[3] ^ b->w[3]));
#endif
}

static __always_inline bool FAM(ip_is_zero)(const struct FAM(ip) *a)
{
#if FAMILY == 4
	return !a->w[0];
#else
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
#endif
}

/* Whether end a stands before end b in a tuple's key. */
static __always_inline bool FAM(end_is_lower)(const struct FAM(ip) *a, __be16 a_port, const struct FAM(ip) *b,
					      __be16 b_port)
{
#pragma unroll
	for (int i = 0; i < IP_WORDS; i++) {
		if (a->w[i] != b->w[i])
			return bpf_ntohl(a->w[i]) < bpf_ntohl(b->w[i]);
	}
	return bpf_ntohs(a_port) <= bpf_ntohs(b_port);
}

/* The change to a checksum when address from becomes to. */
static __always_inline __u64 FAM(ip_diff)(const struct FAM(ip) *from, const struct FAM(ip) *to)
{
	__u64 diff = 0;

#pragma unroll
	for (int i = 0; i < IP_WORDS; i++)
		diff += csum_diff(from->w[i], to->w[i]);
	return diff;
}

static __always_inline __u32 FAM(ip_hash)(const struct FAM(ip) *a, __u32 seed)
{
#pragma unroll
	for (int i = 0; i < IP_WORDS; i++)
		seed = (seed ^ a->w[i]) * 0x9e3779b1;
	return seed ^ (seed >> 15);
}

/* The node's own address that stands as source of translated connections. */
static __always_inline void FAM(node_addr)(const struct config *cfg, struct FAM(ip) *addr)
{
#if FAMILY == 4
	addr->w[0] = cfg->node_addr_v4;
#else
	addr->w[0] = cfg->node_addr_v6[0];
	addr->w[1] = cfg->node_addr_v6[1];
	addr->w[2] = cfg->node_addr_v6[2];
	addr->w[3] = cfg->node_addr_v6[3];
#endif
}

/* What routes_vN knows of an address; flags are 0 when nothing. */
static __always_inline __u32 FAM(route_flags)(const struct FAM(ip) *addr)
{
	struct FAM(route_key) key = { .prefixlen = IP_WORDS * 32, .addr = *addr };
	const struct route *r = bpf_map_lookup_elem(&FAM(routes), &key);

	return r ? r->flags : 0;
}
