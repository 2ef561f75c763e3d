/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Conntrack: finding, adding, and following flows. See ct_entry for what
 * stands under which tuple.
 */

/* What a tuple names. */
struct FAM(ct_hit) {
	struct FAM(ct_entry) *record; /* NULL: nothing */
	__u8 kind;		      /* enum ct_kind of the entry under the tuple */
	__u8 dir;		      /* enum ct_dir of a packet from src to dst */
};

/* Room for entries that are being made: too large for the stack. */
struct FAM(ct_scratch) {
	struct FAM(ct_key) key;
	struct FAM(ct_entry) entry;  /* inserted by ct_insert under key */
	struct FAM(ct_entry) record; /* of the flow being made */
	__u32 seq;		     /* of the packet that makes it */
	__u32 fence;		     /* see ct_rival_across */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct FAM(ct_scratch));
} FAM(ct_scratch) SEC(".maps");

static __always_inline struct FAM(ct_scratch) *FAM(ct_scratch_get)(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&FAM(ct_scratch), &zero);
}

/* Fills a key from two ends; true if a became lo. */
static __always_inline bool FAM(ct_key_set)(struct FAM(ct_key) *key, const struct FAM(ip) *a, __be16 a_port,
					    const struct FAM(ip) *b, __be16 b_port, __u8 proto)
{
	bool lower = FAM(end_is_lower)(a, a_port, b, b_port);

	if (lower) {
		key->lo = *a;
		key->hi = *b;
		key->lo_port = a_port;
		key->hi_port = b_port;
	} else {
		key->lo = *b;
		key->hi = *a;
		key->lo_port = b_port;
		key->hi_port = a_port;
	}
	key->proto = proto;
	key->pad[0] = key->pad[1] = key->pad[2] = 0;
	return lower;
}

static __always_inline bool FAM(ct_key_equal)(const struct FAM(ct_key) *a, const struct FAM(ct_key) *b)
{
	return FAM(ip_equal)(&a->lo, &b->lo) && FAM(ip_equal)(&a->hi, &b->hi) && a->lo_port == b->lo_port &&
	       a->hi_port == b->hi_port && a->proto == b->proto;
}

static __always_inline void *FAM(ct_established)(__u32 slot)
{
	return bpf_map_lookup_elem(&FAM(established), &slot);
}

static __always_inline void *FAM(ct_embryonic)(__u32 slot)
{
	return bpf_map_lookup_elem(&FAM(embryonic), &slot);
}

static __always_inline struct FAM(ct_entry) *FAM(ct_get)(void *map, const struct FAM(ct_key) *key)
{
	return map ? bpf_map_lookup_elem(map, key) : NULL;
}

static __always_inline bool FAM(ct_is_record)(const struct FAM(ct_entry) *e, __u32 nonce, __u64 now)
{
	return e && e->kind == CT_RECORD && e->nonce == nonce && e->expires > now;
}

/* The record that an alias names, or NULL. */
static __noinline struct FAM(ct_entry) *FAM(ct_record)(const struct FAM(ct_key) *key, __u32 nonce, __u64 now)
{
	struct FAM(ct_entry) *e;

	e = FAM(ct_get)(FAM(ct_established)(CT_CURRENT), key);
	if (FAM(ct_is_record)(e, nonce, now))
		return e;
	e = FAM(ct_get)(FAM(ct_embryonic)(CT_CURRENT), key);
	if (FAM(ct_is_record)(e, nonce, now))
		return e;
	e = FAM(ct_get)(FAM(ct_established)(CT_DRAINING), key);
	if (FAM(ct_is_record)(e, nonce, now))
		return e;
	e = FAM(ct_get)(FAM(ct_embryonic)(CT_DRAINING), key);
	if (FAM(ct_is_record)(e, nonce, now))
		return e;
	return NULL;
}

/* The live record behind an entry, which may be the entry itself. */
static __always_inline struct FAM(ct_entry) *FAM(ct_resolve)(struct FAM(ct_entry) *e, __u64 now)
{
	if (!e)
		return NULL;
	if (e->kind == CT_RECORD)
		return e->expires > now ? e : NULL;
	return FAM(ct_record)(&e->main, e->nonce, now);
}

/*
 * Finds the flow of a tuple, established flows first. Expired records and
 * aliases of records that are gone are passed over as if they were not there.
 * src_is_lo is what ct_key_set returned.
 */
static __noinline bool FAM(ct_lookup)(const struct FAM(ct_key) *key, bool src_is_lo, __u64 now,
				      struct FAM(ct_hit) *hit)
{
	struct FAM(ct_entry) *e;

	e = FAM(ct_get)(FAM(ct_established)(CT_CURRENT), key);
	hit->record = FAM(ct_resolve)(e, now);
	if (hit->record)
		goto found;
	e = FAM(ct_get)(FAM(ct_embryonic)(CT_CURRENT), key);
	hit->record = FAM(ct_resolve)(e, now);
	if (hit->record)
		goto found;
	e = FAM(ct_get)(FAM(ct_established)(CT_DRAINING), key);
	hit->record = FAM(ct_resolve)(e, now);
	if (hit->record)
		goto found;
	e = FAM(ct_get)(FAM(ct_embryonic)(CT_DRAINING), key);
	hit->record = FAM(ct_resolve)(e, now);
	if (hit->record)
		goto found;
	/*
	 * Another processor may have promoted it past the looks: then it is where
	 * they began. Missed, an answer would pass untranslated.
	 */
	e = FAM(ct_get)(FAM(ct_established)(CT_CURRENT), key);
	hit->record = FAM(ct_resolve)(e, now);
	if (hit->record)
		goto found;
	return false;
found:
	hit->kind = e->kind;
	hit->dir = !!(e->flags & CT_ORIG_IS_LO) == src_is_lo ? CT_ORIG : CT_REPLY;
	return true;
}

/*
 * Removes a key from both generations, the draining one first: who copies an
 * entry from there to the current one looks again whether it is still there,
 * and takes the copy back if not (ct_copy).
 */
static __always_inline void FAM(ct_delete_embryonic)(const struct FAM(ct_key) *key)
{
	void *map;

	map = FAM(ct_embryonic)(CT_DRAINING);
	if (map)
		bpf_map_delete_elem(map, key);
	map = FAM(ct_embryonic)(CT_CURRENT);
	if (map)
		bpf_map_delete_elem(map, key);
}

/* Removes a key from every map. */
static __noinline void FAM(ct_delete)(const struct FAM(ct_key) *key)
{
	void *map;

	map = FAM(ct_established)(CT_DRAINING);
	if (map)
		bpf_map_delete_elem(map, key);
	map = FAM(ct_established)(CT_CURRENT);
	if (map)
		bpf_map_delete_elem(map, key);
	FAM(ct_delete_embryonic)(key);
}

/* Ends a flow; its aliases name nothing from now on. */
static __noinline void FAM(ct_forget)(const struct FAM(ct_entry) *r)
{
	struct FAM(ct_key) key = r->main; /* the record's own memory goes with it */

	FAM(ct_delete)(&key);
}

/* Whether an entry under the scratch's key is a live one of another flow than the scratch's. */
static __always_inline bool FAM(ct_is_rival)(const struct FAM(ct_scratch) *s, struct FAM(ct_entry) *e, __u64 now)
{
	return e && e->nonce != s->entry.nonce && FAM(ct_resolve)(e, now);
}

/*
 * While the embryonic map is being replaced, programs insert into two: those
 * that looked into the outer map before the exchange into the old one, all
 * others into the new one. So who has inserted looks into both for another's
 * entry, and at least one of two that insert at the same time sees the other.
 */
static __noinline bool FAM(ct_rival_across)(struct FAM(ct_scratch) *s, __u64 now)
{
	struct FAM(ct_entry) *e;

	/* A full barrier: the insertion is visible before the looks. */
	__sync_lock_test_and_set(&s->fence, 1);
	e = FAM(ct_get)(FAM(ct_embryonic)(CT_CURRENT), &s->key);
	if (FAM(ct_is_rival)(s, e, now))
		return true;
	e = FAM(ct_get)(FAM(ct_embryonic)(CT_DRAINING), &s->key);
	return FAM(ct_is_rival)(s, e, now);
}

/*
 * Adds the scratch's entry under the scratch's key among the embryonic flows.
 * 0, or -EEXIST when a live flow has the tuple (the caller finds it by a
 * lookup), or another error when there is no room. Dead entries make way.
 *
 * A global function, verified once: it is called in a loop.
 */
__noinline int FAM(ct_insert)(__u64 now)
{
	struct FAM(ct_scratch) *s = FAM(ct_scratch_get)();
	struct FAM(ct_hit) hit;
	void *map, *established;
	int err;

	if (!s)
		return -1;
	if (FAM(ct_lookup)(&s->key, true, now, &hit))
		return -EEXIST;
	map = FAM(ct_embryonic)(CT_CURRENT);
	if (!map)
		return -1;
	err = bpf_map_update_elem(map, &s->key, &s->entry, BPF_NOEXIST);
	if (err == -EEXIST) {
		/* Dead, or another processor's of this very moment. */
		if (FAM(ct_lookup)(&s->key, true, now, &hit))
			return -EEXIST;
		err = bpf_map_update_elem(map, &s->key, &s->entry, BPF_ANY);
	}
	if (err)
		return err;
	/*
	 * Nobody inserts into two maps but while there is a draining one: its slot
	 * is filled, and all programs that saw it empty have ended, before another
	 * map becomes the current one.
	 */
	if (unlikely(FAM(ct_embryonic)(CT_DRAINING)) && FAM(ct_rival_across)(s, now))
		goto rival;
	established = FAM(ct_established)(CT_CURRENT);
	if (established) {
		struct FAM(ct_entry) *e = bpf_map_lookup_elem(established, &s->key);

		/* Promoted between the first look and the insertion. */
		if (FAM(ct_is_rival)(s, e, now))
			goto rival;
		/* What is dead would stand before the new entry. */
		if (e && e->nonce != s->entry.nonce)
			bpf_map_delete_elem(established, &s->key);
	}
	return 0;
rival:
	bpf_map_delete_elem(map, &s->key);
	return -EEXIST;
}

/*
 * Whether a packet is one to the backend of a service's flow, with that flow's
 * ports, but not by the service: the client's own, before the stack.
 */
static __always_inline bool FAM(ct_hit_bypasses)(const struct FAM(ct_hit) *hit)
{
	if (hit->dir != CT_ORIG)
		return false;
	return (hit->kind == CT_RECORD && (hit->record->flags & (CT_DNAT | CT_SNAT))) ||
	       (hit->kind == CT_ALIAS_BACKEND && (hit->record->flags & CT_DNAT));
}

/* The key of T1. */
static __always_inline bool FAM(ct_key_frontend)(struct FAM(ct_key) *key, const struct FAM(ct_entry) *r)
{
	return FAM(ct_key_set)(key, &r->client_addr, r->client_port, &r->frontend_addr, r->frontend_port,
			       r->main.proto);
}

/* The key of T2. */
static __always_inline bool FAM(ct_key_backend)(struct FAM(ct_key) *key, const struct FAM(ct_entry) *r)
{
	return FAM(ct_key_set)(key, &r->client_addr, r->stack_port, &r->backend_addr, r->backend_port, r->main.proto);
}

/* The key of T3, for a record that is being made. */
static __always_inline bool FAM(ct_key_record)(struct FAM(ct_key) *key, const struct FAM(ct_entry) *r, __u8 proto)
{
	return FAM(ct_key_set)(key, &r->source_addr, r->source_port, &r->backend_addr, r->backend_port, proto);
}

/* Fills the scratch's entry as an alias of record r. */
static __always_inline void FAM(ct_alias)(struct FAM(ct_scratch) *s, const struct FAM(ct_entry) *r, __u8 kind,
					  bool client_is_lo)
{
	__builtin_memset(&s->entry, 0, sizeof(s->entry));
	s->entry.nonce = r->nonce;
	s->entry.kind = kind;
	s->entry.flags = (r->flags & ~CT_ORIG_IS_LO) | (client_is_lo ? CT_ORIG_IS_LO : 0);
	s->entry.main = r->main;
}

/*
 * Moves a flow to the established ones: record first, then aliases, then the
 * embryonic entries go, so that a lookup finds it at every instant. True if it
 * moved: then r is no more, and the scratch's record is a copy. When there is no
 * room it stays, and its next packet tries again.
 */
static __noinline bool FAM(ct_promote)(struct FAM(ct_entry) *r, __u64 expires)
{
	void *est = FAM(ct_established)(CT_CURRENT);
	struct FAM(ct_scratch) *s = FAM(ct_scratch_get)();
	bool lo;

	if (!s || !est)
		return false;
	s->record = *r;
	s->record.state = CT_ESTABLISHED;
	s->record.expires = expires;
	if (bpf_map_update_elem(est, &s->record.main, &s->record, BPF_ANY))
		goto full;
	if (ct_has_frontend_alias(s->record.flags)) {
		lo = FAM(ct_key_frontend)(&s->key, &s->record);
		FAM(ct_alias)(s, &s->record, CT_ALIAS_FRONTEND, lo);
		if (bpf_map_update_elem(est, &s->key, &s->entry, BPF_ANY))
			goto undo;
		FAM(ct_delete_embryonic)(&s->key);
	}
	if (ct_has_backend_alias(s->record.flags)) {
		lo = FAM(ct_key_backend)(&s->key, &s->record);
		FAM(ct_alias)(s, &s->record, CT_ALIAS_BACKEND, lo);
		/* Its embryonic alias stays and will do while it lasts. */
		if (!bpf_map_update_elem(est, &s->key, &s->entry, BPF_ANY))
			FAM(ct_delete_embryonic)(&s->key);
	}
	FAM(ct_delete_embryonic)(&s->record.main);
	return true;
undo:
	bpf_map_delete_elem(est, &s->record.main);
full:
	ct_note_full(CT_TABLE);
	/* It goes on among the embryonic ones, and is to last there as long. */
	r->expires = expires;
	return false;
}

/*
 * What a packet's TCP flags or direction say about its flow's state. Returns 1
 * if the record moved to the established ones; the scratch has its key.
 */
__noinline int FAM(ct_follow)(struct FAM(ct_entry) *r, const struct FAM(packet) *p, const struct config *cfg,
			      __u64 now, __u32 dir)
{
	__u8 flags, state;

	if (!r || !p || !cfg)
		return 0;
	flags = p->tcp_flags;
	state = r->state;
	dir &= 1;
	if (p->proto == IPPROTO_UDP) {
		if (dir == CT_REPLY && state == CT_NEW)
			state = CT_REPLIED;
		else if (dir == CT_ORIG && state == CT_REPLIED)
			return FAM(ct_promote)(r, now + ct_timeout(cfg, IPPROTO_UDP, CT_ESTABLISHED));
	} else if (flags & TCP_RST) {
		state = CT_CLOSED;
	} else if (flags & TCP_SYN) {
		/* The other end's answer: note what the originator will confirm. */
		if (dir == CT_REPLY && (flags & TCP_ACK) && state <= CT_REPLIED) {
			r->seq_expected = p->seq + 1;
			state = CT_REPLIED;
		}
	} else {
		if (r->tcp_flags[dir] & TCP_RST) {
			/*
			 * It talks after its own RST: that was a stray one, of
			 * an earlier connection or forged.
			 */
			r->tcp_flags[dir] &= ~TCP_RST;
			if (!((r->tcp_flags[0] | r->tcp_flags[1]) & (TCP_RST | TCP_FIN)) && state == CT_CLOSED)
				state = r->seq_expected ? CT_ESTABLISHED : CT_NEW;
		}
		if (flags & TCP_FIN) {
			/* Nothing is left to confirm: now what a successor must exceed. */
			if (dir == CT_ORIG)
				r->seq_expected = p->seq;
			if (r->tcp_flags[!dir] & TCP_FIN)
				state = CT_CLOSED;
			else if (state <= CT_CLOSING)
				state = CT_CLOSING;
		} else if (dir == CT_ORIG && state == CT_REPLIED && (flags & TCP_ACK) && tcp_ack_confirms(p->ack, r->seq_expected)) {
			r->tcp_flags[dir] |= flags;
			if (FAM(ct_promote)(r, now + ct_timeout(cfg, IPPROTO_TCP, CT_ESTABLISHED)))
				return 1;
			/* No room: a later ACK, of more, is to confirm it as well. */
			r->seq_expected = p->ack;
			return 0;
		}
	}
	if ((r->tcp_flags[dir] | flags) != r->tcp_flags[dir])
		r->tcp_flags[dir] |= flags;
	if (state != r->state) {
		r->state = state;
		r->expires = now + ct_timeout(cfg, p->proto, state);
	}
	return 0;
}

/* Keeps a flow alive and follows its state, for a packet of it. Returns the record, which may have moved. */
static __always_inline struct FAM(ct_entry) *FAM(ct_track)(struct FAM(ct_entry) *r, const struct FAM(packet) *p,
							   const struct config *cfg, __u64 now, __u8 dir)
{
	__u64 expires;

	if (unlikely(r->state != CT_ESTABLISHED || (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))) {
		if (FAM(ct_follow)(r, p, cfg, now, dir)) {
			struct FAM(ct_scratch) *s = FAM(ct_scratch_get)();

			return s ? FAM(ct_record)(&s->record.main, s->record.nonce, now) : NULL;
		}
	}
	expires = now + ct_timeout(cfg, p->proto, r->state);
	if ((__s64)(expires - r->expires) > (__s64)EXPIRES_STEP)
		r->expires = expires;
	return r;
}

/*
 * Whether an established flow would find room: the kernel tells by an insertion
 * alone. The entry stands under a key of no flow, and is dead.
 */
static __noinline bool FAM(ct_has_room)(struct FAM(ct_scratch) *s)
{
	void *est = FAM(ct_established)(CT_CURRENT);

	if (!est)
		return true;
	__builtin_memset(&s->key, 0, sizeof(s->key));
	__builtin_memset(&s->entry, 0, sizeof(s->entry));
	if (bpf_map_update_elem(est, &s->key, &s->entry, BPF_ANY)) {
		ct_note_full(CT_TABLE);
		return false;
	}
	bpf_map_delete_elem(est, &s->key);
	return true;
}
