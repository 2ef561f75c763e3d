/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Session affinity: a client that connects again within the service's time gets
 * the backend that it had, if that is still usable. For packets and for sockets.
 */

/* Whether the backend at a place stands before another in a range, or is it. */
__noinline int FAM(backend_reaches)(__u32 index, const struct FAM(backend) *other)
{
	const struct FAM(backend) *b = bpf_map_lookup_elem(&FAM(backends), &index);

	if (!b || !other)
		return 0;
	return FAM(end_is_lower)(&b->addr, b->port, &other->addr, other->port);
}

/*
 * Where in a frontend's range a backend stands, counted from first; count if
 * nowhere. A binary search: a service may have thousands. These are global
 * functions, verified once and not for every way that leads there.
 */
__noinline __u32 FAM(backend_find)(__u32 first, __u32 count, const struct FAM(backend) *wanted)
{
	const struct FAM(backend) *b;
	__u32 at = 0, rest = count;

	if (!wanted)
		return count;
	for (int i = 0; i < 32 && rest > 1; i++) {
		__u32 half = rest / 2;

		if (FAM(backend_reaches)(first + at + half, wanted))
			at += half;
		rest -= half;
	}
	first += at;
	b = bpf_map_lookup_elem(&FAM(backends), &first);
	if (count && b && b->port == wanted->port && FAM(ip_equal)(&b->addr, &wanted->addr))
		return at;
	return count;
}

/* Where in the frontend's range the backend of an affinity stands; the number of backends if nowhere. */
static __always_inline __u32 FAM(affinity_find)(struct FAM(affinity) *a, const struct frontend *f)
{
	struct FAM(backend) had = { .addr = a->backend_addr, .port = a->backend_port };
	__u32 at = a->offset;
	__u32 index = f->first_backend + at;
	const struct FAM(backend) *b;

	if (likely(at < f->backend_count)) {
		b = bpf_map_lookup_elem(&FAM(backends), &index);
		if (b && b->port == had.port && FAM(ip_equal)(&b->addr, &had.addr))
			return at;
	}
	at = FAM(backend_find)(f->first_backend, f->backend_count, &had);
	if (at < f->backend_count)
		a->offset = at;
	return at;
}

/*
 * Chooses a backend of a frontend with affinity for a new connection, and
 * remembers it: the client's own, or that which random says. Returns its place
 * in the frontend's range, which has at least one.
 */
__noinline __u32 FAM(affinity_choose)(const struct FAM(affinity_key) *client, const struct frontend *f, __u64 now,
				      __u32 random)
{
	struct FAM(affinity_key) key;
	const struct FAM(backend) *b;
	struct FAM(affinity) *a, next = {};
	__u32 tick = now >> AFFINITY_TICK_SHIFT;
	__u32 at, index;

	if (!client || !f)
		return 0;
	/* Some kernels (6.1) take no key from where a global function's argument points to. */
	key = *client;
	a = bpf_map_lookup_elem(&FAM(affinity), &key);
	if (a) {
		/* Another processor may have used it since this one looked at the clock. */
		__s32 age = tick - a->used;

		if (age < 0 || (__u64)age << AFFINITY_TICK_SHIFT < f->affinity_timeout * NSEC_PER_SEC) {
			at = FAM(affinity_find)(a, f);
			if (at < f->backend_count) {
				if (a->used != tick)
					a->used = tick;
				return at;
			}
		}
	}
	at = ((__u64)random * f->backend_count) >> 32;
	index = f->first_backend + at;
	b = bpf_map_lookup_elem(&FAM(backends), &index);
	if (!b)
		return at;
	next.backend_addr = b->addr;
	next.backend_port = b->port;
	next.offset = at;
	next.used = tick;
	/* Never written in place: a reader could see half of two backends. */
	if (a) {
		bpf_map_update_elem(&FAM(affinity), &key, &next, BPF_ANY);
		return at;
	}
	if (!bpf_map_update_elem(&FAM(affinity), &key, &next, BPF_NOEXIST))
		return at;
	/* The client opens several connections at once; another one's choice holds. */
	a = bpf_map_lookup_elem(&FAM(affinity), &key);
	if (a) {
		index = FAM(affinity_find)(a, f);
		if (index < f->backend_count)
			return index;
	}
	return at;
}
