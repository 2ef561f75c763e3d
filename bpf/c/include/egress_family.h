/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet leaves the node: the source is translated, after the stack. */

static __always_inline int FAM(egress)(struct __sk_buff *skb, const struct config *cfg, __u8 device)
{
	struct FAM(packet) p = {};
	struct FAM(ct_key) key;
	struct FAM(ct_hit) hit;
	struct FAM(ct_entry) *r;
	struct FAM(ends) to;
	enum parsed parsed;
	bool src_is_lo;
	__u64 now;
	__u8 dir;

	parsed = FAM(parse)(skb, &p);
	if (unlikely(parsed == PARSED_ICMP_ERROR))
		return FAM(icmp_error)(skb, p.l4_off, HOOK_EGRESS);
	if (parsed != PARSED_FLOW)
		return PASS;
	now = bpf_ktime_get_coarse_ns();
	src_is_lo = FAM(ct_key_set)(&key, &p.src, p.sport, &p.dst, p.dport, p.proto);
	if (!FAM(ct_lookup)(&key, src_is_lo, now, &hit))
		return PASS;
	r = hit.record;
	/* Only T2 leaves the stack; T1 and a translated T3 are finished, or not the flow's. */
	if (hit.kind == CT_ALIAS_FRONTEND || (hit.kind == CT_RECORD && (r->flags & CT_SNAT)))
		return PASS;
	dir = hit.dir & 1;
	r = FAM(ct_track)(r, &p, cfg, now, dir);
	if (!r)
		return PASS;
	/* The confirmation: netfilter let this direction through, untranslated. */
	if (unlikely(r->out_ifindex[dir] != skb->ifindex)) {
		r->out_kind[dir] = device;
		r->out_ifindex[dir] = skb->ifindex;
	}
	if (dir == CT_ORIG) {
		if (!(r->flags & CT_SNAT))
			return PASS;
		to.src = r->source_addr;
		to.sport = r->source_port;
		to.dst = p.dst;
		to.dport = p.dport;
	} else {
		if (!(r->flags & CT_DNAT))
			return PASS;
		to.src = r->frontend_addr;
		to.sport = r->frontend_port;
		to.dst = p.dst;
		to.dport = r->client_port;
	}
	if (FAM(nat_rewrite)(skb, &p, &to, false))
		return drop(skb, REASON_REWRITE);
	return PASS;
}
