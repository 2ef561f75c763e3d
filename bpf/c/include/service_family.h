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

/*
 * One of a frontend's backends, evenly at random, or the one that the client
 * keeps; NULL if the array is short. An address of NULL stands for the host.
 */
static __always_inline const struct FAM(backend) *FAM(backend_choose)(const struct frontend *f,
								      const struct FAM(ip) *client,
								      const struct config *cfg, __u64 now)
{
	__u32 random = bpf_get_prandom_u32();
	__u32 index;

	if (unlikely(f->affinity_timeout)) {
		struct FAM(affinity_key) key = { .service_id = f->service_id };

		if (client) {
			key.client = *client;
		} else {
			/* As for its sockets, whatever address a route gave the packet. */
			key.netns_cookie[0] = cfg->host_netns_cookie;
			key.netns_cookie[1] = cfg->host_netns_cookie >> 32;
		}
		index = FAM(affinity_choose)(&key, f, now, random);
	} else {
		index = random % f->backend_count;
	}
	index += f->first_backend;
	return bpf_map_lookup_elem(&FAM(backends), &index);
}
