/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet leaves the node: the source is translated, after the stack. */

/*
 * A packet of the host itself to a service, which no socket program saw: it
 * leaves by the route to the service's address, and is sent on to the backend.
 */
static __noinline int FAM(egress_host)(struct __sk_buff *skb, const struct FAM(packet) *p, const struct FAM(ct_entry) *r)
{
	struct bpf_fib_lookup fib;
	struct FAM(ends) to;
	int err;

	FAM(ends_final)(&to, r, CT_ORIG);
	FAM(fib_prepare)(&fib, skb, p, &to);
	err = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (err != BPF_FIB_LKUP_RET_SUCCESS && err != BPF_FIB_LKUP_RET_NO_NEIGH)
		return PASS; /* as without Millrace: nobody there */
	if (FAM(nat_rewrite)(skb, p, &to, false))
		return drop(skb, REASON_REWRITE);
	skb->tc_index = TC_INDEX_FINISHED;
	return bpf_redirect_neigh(fib.ifindex, NULL, 0, 0);
}

static __always_inline int FAM(egress)(struct __sk_buff *skb, const struct config *cfg, __u8 device)
{
	struct FAM(packet) p = {};
	struct FAM(ct_key) key;
	struct FAM(ct_hit) hit;
	struct FAM(ct_entry) *r;
	struct FAM(ends) to;
	enum parsed parsed;
	bool src_is_lo, found;
	__u64 now;
	__u8 dir;

	parsed = FAM(parse)(skb, &p);
	if (unlikely(parsed == PARSED_ICMP_ERROR))
		return FAM(icmp_error)(skb, p.l4_off, HOOK_EGRESS);
	if (parsed != PARSED_FLOW)
		return PASS;
	now = bpf_ktime_get_coarse_ns();
	src_is_lo = FAM(ct_key_set)(&key, &p.src, p.sport, &p.dst, p.dport, p.proto);
	found = FAM(ct_lookup)(&key, src_is_lo, now, &hit);
	if (unlikely(found && hit.dir == CT_ORIG && (hit.record->flags & CT_HOST_CLIENT))) {
		bool over = p.proto == IPPROTO_TCP && tcp_opens(p.tcp_flags) && hit.record->state >= CT_CLOSING;
		/* What egress_host sends on is finished: this goes to the backend directly. */
		bool direct = p.proto == IPPROTO_UDP && hit.kind == CT_RECORD && !(cfg->flags & CONFIG_BEHIND);

		if (over || direct) {
			FAM(ct_forget)(hit.record);
			found = false;
		}
	}
	/* Without a device that it came by, it is the host's own. */
	if (unlikely(!found && !skb->ingress_ifindex)) {
		if ((p.proto == IPPROTO_TCP && !tcp_opens(p.tcp_flags)) || !FAM(frontend_get)(&p.dst, p.dport, p.proto))
			return PASS;
		switch (FAM(flow_make)(skb, &p, cfg, now, DEVICE_NONE)) {
		case FLOW_MADE:
			break;
		case FLOW_REFUSED:
			return FAM(refuse)(skb, &p, BPF_F_INGRESS);
		case FLOW_DROPPED:
			return DROP;
		default:
			return PASS;
		}
		found = FAM(ct_lookup)(&key, src_is_lo, now, &hit);
	}
	if (!found)
		return PASS;
	r = hit.record;
	if (unlikely(hit.kind == CT_ALIAS_FRONTEND && hit.dir == CT_ORIG && (r->flags & CT_HOST_CLIENT))) {
		r = FAM(ct_track)(r, &p, cfg, now, CT_ORIG);
		return r ? FAM(egress_host)(skb, &p, r) : PASS;
	}
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
