/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* connected_vN and spilled_vN, once per family. Included by sock_family.h. */

/* The slot of a socket's cookie. */
static __always_inline struct FAM(connected) *FAM(connected_slot)(__u64 cookie)
{
	__u32 index = cookie & (CONNECTED_SLOTS - 1);

	return bpf_map_lookup_elem(&FAM(connected), &index);
}

/* What the socket's last connect left, or NULL. */
static __always_inline struct FAM(sock_peer) *FAM(connected_get)(__u64 cookie)
{
	struct FAM(connected) *slot = FAM(connected_slot)(cookie);

	if (!slot)
		return NULL;
	if (slot->cookie == cookie)
		return &slot->peer;
	return unlikely(slot->spilled) ? bpf_map_lookup_elem(&FAM(spilled), &cookie) : NULL;
}

static __always_inline bool FAM(connected_set)(__u64 cookie, const struct FAM(sock_peer) *peer)
{
	struct FAM(connected) *slot = FAM(connected_slot)(cookie);
	struct FAM(sock_peer) *p;

	if (!slot)
		return false;
	p = FAM(connected_get)(cookie);
	if (p) {
		*p = *peer;
		return true;
	}
	if (likely(!__sync_val_compare_and_swap(&slot->cookie, 0, cookie))) {
		slot->peer = *peer;
		return true;
	}
	__sync_fetch_and_add(&slot->spilled, 1);
	if (!bpf_map_update_elem(&FAM(spilled), &cookie, peer, BPF_NOEXIST))
		return true;
	__sync_fetch_and_add(&slot->spilled, -1);
	return false;
}

static __always_inline void FAM(connected_delete)(__u64 cookie)
{
	struct FAM(connected) *slot = FAM(connected_slot)(cookie);

	if (!slot)
		return;
	if (slot->cookie == cookie)
		slot->cookie = 0;
	else if (unlikely(slot->spilled) && !bpf_map_delete_elem(&FAM(spilled), &cookie))
		__sync_fetch_and_add(&slot->spilled, -1);
}
