/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services: from what a client dials to one backend. */

/* The frontend that a packet dials, or NULL. */
static __always_inline const struct frontend *FAM(frontend_get)(const struct FAM(ip) *addr, __be16 port, __u8 proto)
{
	struct FAM(frontend_key) key = { .addr = *addr, .port = port, .proto = proto };
	const struct frontend *f = bpf_map_lookup_elem(&FAM(frontends), &key);

	/* Loopback frontends are for sockets: no packet to them is a client's. */
	return f && !(f->flags & FRONTEND_HOST_ONLY) ? f : NULL;
}

/* One of a frontend's backends, evenly at random; NULL if the array is short. */
static __always_inline const struct FAM(backend) *FAM(backend_choose)(__u32 first, __u32 count)
{
	__u32 index = first + bpf_get_prandom_u32() % count;

	return bpf_map_lookup_elem(&FAM(backends), &index);
}
