/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet enters the node: the destination is translated, before the stack. */

/* A packet of a known flow. */
static __always_inline int FAM(ingress_hit)(struct __sk_buff *skb, const struct FAM(packet) *p,
					    const struct config *cfg, __u64 now, const struct FAM(ct_hit) *hit)
{
	struct FAM(ct_entry) *r = hit->record;
	__u8 dir = hit->dir;
	struct FAM(ends) to;
	bool was_established;

	if (dir == CT_ORIG ? FAM(ct_hit_bypasses)(hit) : hit->kind != CT_RECORD)
		return PASS; /* none of the flow's packets */
	was_established = r->state == CT_ESTABLISHED;
	r = FAM(ct_track)(r, p, cfg, now, dir);
	if (!r)
		return PASS;
	if (unlikely(r->flags & CT_HAIRPIN)) {
		FAM(ends_final)(&to, r, dir);
		if (FAM(nat_rewrite)(skb, p, &to, false))
			return drop(skb, REASON_REWRITE);
		return reflect_finished(skb, 0);
	}
	if (unlikely(r->flags & CT_HOST_CLIENT)) {
		/* An answer to the host itself: this is the last hook on its way. */
		if (dir == CT_ORIG)
			return PASS;
		FAM(ends_final)(&to, r, dir);
		return FAM(nat_rewrite)(skb, p, &to, false) ? drop(skb, REASON_REWRITE) : PASS;
	}
	/*
	 * What establishes the flow goes through the stack: netfilter would keep
	 * it as half-open, for a minute, and call its end invalid after that.
	 * So does a bridged frame: past the stack it would stay "another
	 * host's", and be lost.
	 */
	if (was_established && skb->pkt_type == PACKET_HOST && FAM(fast_path_allowed)(p, r, cfg)) {
		int verdict = FAM(fast_path)(skb, p, r, dir);

		if (verdict != FAST_PATH_NOT_TAKEN)
			return verdict;
	}
	to.src = p->src;
	to.sport = p->sport;
	if (dir == CT_ORIG) {
		if (!(r->flags & CT_DNAT))
			return PASS;
		to.sport = r->stack_port;
		to.dst = r->backend_addr;
		to.dport = r->backend_port;
	} else {
		if (!(r->flags & CT_SNAT))
			return PASS;
		to.dst = r->client_addr;
		to.dport = r->stack_port;
	}
	if (FAM(nat_rewrite)(skb, p, &to, false))
		return drop(skb, REASON_REWRITE);
	return PASS;
}

static __always_inline int FAM(ingress)(struct __sk_buff *skb, const struct config *cfg, __u8 device)
{
	struct FAM(packet) p = {};
	struct FAM(ct_key) key;
	struct FAM(ct_hit) hit;
	enum parsed parsed;
	bool src_is_lo, found;
	__u64 now;

	parsed = FAM(parse)(skb, &p);
	if (unlikely(parsed == PARSED_ICMP_ERROR))
		return FAM(icmp_error)(skb, p.l4_off, HOOK_INGRESS);
	if (parsed != PARSED_FLOW)
		return PASS;
	now = bpf_ktime_get_coarse_ns();
	src_is_lo = FAM(ct_key_set)(&key, &p.src, p.sport, &p.dst, p.dport, p.proto);
	found = FAM(ct_lookup)(&key, src_is_lo, now, &hit);
	if (unlikely(p.proto == IPPROTO_TCP && tcp_opens(p.tcp_flags) && found && hit.record->state >= CT_CLOSING)) {
		/* The same ports again: another connection, free to choose a backend. */
		FAM(ct_forget)(hit.record);
		found = false;
	}
	if (unlikely(p.proto == IPPROTO_UDP && found && FAM(ct_hit_bypasses)(&hit) && !(cfg->flags & CONFIG_BEHIND))) {
		/*
		 * Answers to it are answers to that flow too, and would come from
		 * the service's address. What the client sends now is what it
		 * waits for an answer to. If it goes on with the service as well,
		 * that flow is made anew, with another port inside the host.
		 */
		FAM(ct_forget)(hit.record);
		found = false;
	}
	if (unlikely(!found)) {
		if (p.proto == IPPROTO_TCP && !tcp_opens(p.tcp_flags))
			return PASS;
		switch (FAM(flow_make)(skb, &p, cfg, now, device)) {
		case FLOW_MADE:
			break;
		case FLOW_REFUSED:
			return FAM(refuse)(skb, &p, 0);
		case FLOW_DROPPED:
			return DROP;
		default:
			return PASS;
		}
		if (!FAM(ct_lookup)(&key, src_is_lo, now, &hit))
			return PASS;
	}
	return FAM(ingress_hit)(skb, &p, cfg, now, &hit);
}
