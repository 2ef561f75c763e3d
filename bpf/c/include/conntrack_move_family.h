/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Moving entries from the draining generation of a map to the current one, in
 * two steps. Copy: from then on lookups find the copy, for the current map
 * comes first; but programs that had found the old entry before may still write
 * into it. Settle, when all of those have ended: what they wrote is merged into
 * the copy, and the old entry goes. It is done here and not by system calls,
 * for these replace an entry whole, and a program that writes into it in that
 * moment would write into memory that nobody looks at any more.
 */

static __always_inline void *FAM(ct_table)(__u32 table, __u32 slot)
{
	return table == CT_MOVE_EMBRYONIC ? FAM(ct_embryonic)(slot) : FAM(ct_established)(slot);
}

/* Whether an entry names something live. */
static __always_inline bool FAM(ct_is_live)(struct FAM(ct_entry) *e, __u64 now)
{
	if (FAM(ct_resolve)(e, now))
		return true;
	/* Its record may have been promoted past the looks: now it would be where they begin. */
	return FAM(ct_resolve)(e, now);
}

/* Copies the entry under the key at off. Returns an enum ct_moved. */
__noinline int FAM(ct_copy)(struct __sk_buff *skb, __u32 off, __u32 table, __u64 now)
{
	void *from = FAM(ct_table)(table, CT_DRAINING);
	void *to = FAM(ct_table)(table, CT_CURRENT);
	struct FAM(ct_entry) *e, *have;
	struct FAM(ct_key) key;
	__u32 nonce;
	long err;

	if (!from || !to || from == to || bpf_skb_load_bytes(skb, off, &key, sizeof(key)))
		return CT_MOVE_STAYS;
	e = bpf_map_lookup_elem(from, &key);
	if (!e)
		return CT_MOVE_GONE;
	nonce = e->nonce;
	if (!FAM(ct_is_live)(e, now)) {
		have = bpf_map_lookup_elem(to, &key);
		if (have && have->nonce == nonce)
			return CT_MOVE_DONE; /* ended after it was copied: so must the copy */
		goto gone;
	}
	err = bpf_map_update_elem(to, &key, e, BPF_NOEXIST);
	if (err == -EEXIST) {
		have = bpf_map_lookup_elem(to, &key);
		if (have && have->nonce == nonce)
			return CT_MOVE_DONE; /* by an agent that ended before it settled */
		if (have && FAM(ct_is_live)(have, now))
			goto gone; /* another flow's: lookups find that one */
		err = bpf_map_update_elem(to, &key, e, BPF_ANY);
	}
	if (err)
		return CT_MOVE_STAYS;
	/* Ended in between: then nothing must be left of it (ct_delete). */
	if (!bpf_map_lookup_elem(from, &key)) {
		have = bpf_map_lookup_elem(to, &key);
		if (have && have->nonce == nonce)
			bpf_map_delete_elem(to, &key);
		return CT_MOVE_GONE;
	}
	return CT_MOVE_DONE;
gone:
	bpf_map_delete_elem(from, &key);
	return CT_MOVE_GONE;
}

/* Takes over into a copy what was written into the entry after it was copied. */
static __always_inline void FAM(ct_merge)(struct FAM(ct_entry) *to, const struct FAM(ct_entry) *from, __u64 now)
{
	const struct config *cfg = config_get();
	__u8 fins;

	for (int dir = 0; dir < 2; dir++) {
		if (!to->out_ifindex[dir] && from->out_ifindex[dir]) {
			to->out_kind[dir] = from->out_kind[dir];
			to->out_ifindex[dir] = from->out_ifindex[dir];
		}
	}
	if (from->state > to->state || (from->tcp_flags[CT_ORIG] & ~to->tcp_flags[CT_ORIG] & TCP_FIN))
		to->seq_expected = from->seq_expected;
	to->tcp_flags[CT_ORIG] |= from->tcp_flags[CT_ORIG];
	to->tcp_flags[CT_REPLY] |= from->tcp_flags[CT_REPLY];
	if (from->state > to->state) {
		to->state = from->state;
		to->expires = from->expires;
	} else if (from->state == to->state && (!from->expires || (to->expires && from->expires > to->expires))) {
		to->expires = from->expires; /* 0: its port went to another flow */
	}
	fins = to->tcp_flags[CT_ORIG] & to->tcp_flags[CT_REPLY] & TCP_FIN;
	if (fins && to->state < CT_CLOSED && cfg) { /* one was seen here, one there */
		to->state = CT_CLOSED;
		to->expires = now + ct_timeout(cfg, IPPROTO_TCP, CT_CLOSED);
	}
}

/* Merges the entry under the key at off into its copy, and removes it. Returns an enum ct_moved. */
__noinline int FAM(ct_settle)(struct __sk_buff *skb, __u32 off, __u32 table, __u64 now)
{
	void *from = FAM(ct_table)(table, CT_DRAINING);
	void *to = FAM(ct_table)(table, CT_CURRENT);
	struct FAM(ct_entry) *e, *copy;
	struct FAM(ct_key) key;

	if (!from || !to || from == to || bpf_skb_load_bytes(skb, off, &key, sizeof(key)))
		return CT_MOVE_STAYS;
	e = bpf_map_lookup_elem(from, &key);
	if (!e)
		return CT_MOVE_GONE;
	copy = bpf_map_lookup_elem(to, &key);
	if (!copy)
		return CT_MOVE_STAYS; /* there was no room */
	if (copy->kind == CT_RECORD && e->kind == CT_RECORD && copy->nonce == e->nonce)
		FAM(ct_merge)(copy, e, now);
	bpf_map_delete_elem(from, &key);
	return CT_MOVE_DONE;
}

static __always_inline int FAM(ct_move)(struct __sk_buff *skb, const struct ct_move_request *request)
{
	__u32 moved = 0;
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 off = CT_MOVE_KEYS;

	for (int i = 0; i < CT_MOVE_BATCH; i++, off += sizeof(struct FAM(ct_key))) {
		if (i >= request->keys)
			break;
		if (request->step == CT_MOVE_COPY)
			moved += FAM(ct_copy)(skb, off, request->table, now);
		else
			moved += FAM(ct_settle)(skb, off, request->table, now);
	}
	return moved;
}
