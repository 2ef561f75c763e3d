/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Making the record and the aliases of a new flow. */

/*
 * Whether a flow is so far over that its source port may serve another, as in
 * the host's own connection tracking: otherwise one backend would get no more
 * connections through a node in the time that closed flows are kept than there
 * are ports. After FINs from both ends the backend may still hold the flow, in
 * TIME_WAIT, and takes a SYN for a new one only if its sequence number goes on
 * from there.
 */
static __always_inline bool FAM(ct_is_over)(const struct FAM(ct_entry) *e, const struct config *cfg, __u64 now,
					    __u32 seq)
{
	__u64 age;

	if (e->state != CT_CLOSED || !(e->flags & CT_SNAT))
		return false;
	age = now + ct_timeout(cfg, IPPROTO_TCP, CT_CLOSED) - e->expires;
	if ((e->tcp_flags[CT_ORIG] | e->tcp_flags[CT_REPLY]) & TCP_RST)
		return age > RESET_REST; /* who talks on takes it back in this time */
	return age > CLOSED_REST && (__s32)(seq - e->seq_expected) > TCP_CONFIRM_WINDOW;
}

/* Ends the flow under the scratch's key if it is over. */
static __always_inline bool FAM(flow_succeeds)(struct FAM(ct_scratch) *s, const struct config *cfg, __u64 now)
{
	struct FAM(ct_hit) hit;

	if (!FAM(ct_lookup)(&s->key, true, now, &hit) || hit.kind != CT_RECORD ||
	    !FAM(ct_is_over)(hit.record, cfg, now, s->seq))
		return false;
	hit.record->expires = 0;
	return true;
}

/*
 * Tries to insert the scratch's record under T3 with one candidate: as the
 * source's port, and for a flow without source translation also as the client's
 * in the host's stack, for the two are one tuple then. Global functions, as
 * they are called in loops: verified once.
 */
__noinline int FAM(flow_try_record)(const struct config *cfg, __u32 start, int i, __u64 now, __u32 proto)
{
	struct FAM(ct_scratch) *s = FAM(ct_scratch_get)();
	struct FAM(ct_entry) *r, *other;
	struct FAM(ct_hit) hit;
	int err;

	if (!s || !cfg)
		return -1;
	r = &s->record;
	if (i != PORT_AS_IT_IS) {
		r->source_port = port_candidate(cfg, start, i);
		if (!(r->flags & CT_SNAT))
			r->stack_port = r->source_port;
	}
	r->flags &= ~CT_ORIG_IS_LO;
	if (FAM(ct_key_record)(&s->key, r, proto))
		r->flags |= CT_ORIG_IS_LO;
	r->main = s->key;
	s->entry = *r;
	err = FAM(ct_insert)(now);
	if (err == -EEXIST && i != PORT_AS_IT_IS && r->flags & CT_SNAT && FAM(flow_succeeds)(s, cfg, now))
		err = FAM(ct_insert)(now);
	if (err != -EEXIST || i != PORT_AS_IT_IS)
		return err;
	/* The flow itself, whose alias got lost, or that another processor is making? */
	if (!FAM(ct_lookup)(&s->key, true, now, &hit) || hit.kind != CT_RECORD)
		return err;
	other = hit.record;
	if (other->client_port == r->client_port &&
	    other->frontend_port == r->frontend_port && FAM(ip_equal)(&other->client_addr, &r->client_addr) &&
	    FAM(ip_equal)(&other->frontend_addr, &r->frontend_addr)) {
		*r = *other;
		return 0;
	}
	return err;
}

static __always_inline int FAM(flow_insert_record)(const struct config *cfg, __u32 start, bool translated_source,
						   bool may_move, __u64 now, __u32 proto)
{
	int err = -EEXIST;

	if (!translated_source) {
		err = FAM(flow_try_record)(cfg, start, PORT_AS_IT_IS, now, proto);
		if (err != -EEXIST || !may_move || !has_port_range(cfg))
			return err;
	}
	for (int i = 0; i < PORT_PROBES; i++) {
		err = FAM(flow_try_record)(cfg, start, i, now, proto);
		if (err != -EEXIST)
			break;
	}
	return err;
}

/* Tries to insert the alias under T2 with one candidate for the client's port. */
__noinline int FAM(flow_try_backend_alias)(const struct config *cfg, __u32 start, int i, __u64 now)
{
	struct FAM(ct_scratch) *s = FAM(ct_scratch_get)();
	struct FAM(ct_entry) *r, *e;
	bool lo;
	int err;

	if (!s || !cfg)
		return -1;
	r = &s->record;
	if (i != PORT_AS_IT_IS)
		r->stack_port = port_candidate(cfg, start, i);
	lo = FAM(ct_key_backend)(&s->key, r);
	FAM(ct_alias)(s, r, CT_ALIAS_BACKEND, lo);
	err = FAM(ct_insert)(now);
	if (err || i == PORT_AS_IT_IS)
		return err;
	e = FAM(ct_record)(&r->main, r->nonce, now);
	if (!e)
		return -1;
	e->stack_port = r->stack_port;
	return 0;
}

static __always_inline int FAM(flow_insert_backend_alias)(const struct config *cfg, __u32 start, __u64 now)
{
	int err = FAM(flow_try_backend_alias)(cfg, start, PORT_AS_IT_IS, now);

	for (int i = 0; i < PORT_PROBES && err == -EEXIST; i++)
		err = FAM(flow_try_backend_alias)(cfg, start, i, now);
	return err;
}

/*
 * Makes the flow of a packet that enters the node (or, with DEVICE_NONE, that
 * the host itself sends) and has no record: one to a
 * service gets a backend, one between ends of the cluster a plain record.
 * Returns an enum flow_made. A global function: verified once.
 */
__noinline int FAM(flow_make)(struct __sk_buff *skb, const struct FAM(packet) *p, const struct config *cfg, __u64 now,
			      __u32 device)
{
	struct FAM(ct_scratch) *s = FAM(ct_scratch_get)();
	const struct frontend *f;
	struct FAM(ct_entry) *r;
	__u32 client_route;
	__u32 start;
	bool lo;
	int err;

	if (!s || !p || !cfg)
		return FLOW_NONE;
	f = FAM(frontend_get)(&p->dst, p->dport, p->proto);
	client_route = FAM(route_flags)(&p->src);
	r = &s->record;
	/*
	 * What programs of an earlier generation translated looks like a plain flow
	 * behind them. A record of it could take the place of the flow's own when
	 * that is carried over: both stand under the tuple that the backend sees.
	 */
	if (!f && (device == DEVICE_NONE || (cfg->flags & CONFIG_BEHIND)))
		return FLOW_NONE;
	if (!f && (!client_route || !FAM(route_flags)(&p->dst)))
		return FLOW_NONE;
	if (f && !f->backend_count)
		return FLOW_REFUSED;
	if (unlikely(ct_is_pressed(CT_TABLE, now)) && !FAM(ct_has_room)(s)) {
		/* Those that are there go on; a plain flow needs no record. */
		if (!f)
			return FLOW_NONE;
		count(skb, REASON_CT_FULL);
		return FLOW_DROPPED;
	}

	__builtin_memset(r, 0, sizeof(*r));
	r->kind = CT_RECORD;
	r->state = CT_NEW;
	r->nonce = bpf_get_prandom_u32();
	r->expires = now + ct_timeout(cfg, p->proto, CT_NEW);
	r->client_addr = r->source_addr = p->src;
	r->client_port = r->source_port = r->stack_port = p->sport;
	r->frontend_addr = r->backend_addr = p->dst;
	r->frontend_port = r->backend_port = p->dport;
	r->tcp_flags[CT_ORIG] = p->tcp_flags;
	s->seq = p->seq;
	start = FAM(ip_hash)(&p->src, (__u32)p->sport << 16 | p->dport);
	if (f) {
		const struct FAM(backend) *b = FAM(backend_choose)(f, device == DEVICE_NONE ? NULL : &p->src, cfg, now);

		if (!b || !b->port) {
			count(skb, REASON_BACKEND_MISSING);
			return FLOW_DROPPED;
		}
		if (device == DEVICE_NONE) {
			/* The host's own backend is reached by the host's stack alone. */
			if ((b->flags & (BACKEND_LOCAL | BACKEND_HOST_NETWORK)) == (BACKEND_LOCAL | BACKEND_HOST_NETWORK))
				return FLOW_NONE;
			r->flags |= CT_HOST_CLIENT;
		}
		r->service_id = f->service_id;
		r->backend_addr = b->addr;
		r->backend_port = b->port;
		if (b->port != p->dport || !FAM(ip_equal)(&b->addr, &p->dst))
			r->flags |= CT_DNAT;
		if (device == DEVICE_UPLINK && !(b->flags & BACKEND_LOCAL)) {
			/* In by the uplink and out again: the answer must come back here. */
			r->flags |= CT_SNAT;
		} else if (device == DEVICE_POD && FAM(ip_equal)(&b->addr, &p->src)) {
			/*
			 * The backend is the client: it would answer itself,
			 * past the node, without another source.
			 */
			r->flags |= CT_SNAT | CT_HAIRPIN;
		}
		if (r->flags & CT_SNAT) {
			FAM(node_addr)(cfg, &r->source_addr);
			if (FAM(ip_is_zero)(&r->source_addr) || !has_port_range(cfg)) {
				count(skb, REASON_NO_SNAT_PORT);
				return FLOW_DROPPED;
			}
		}
		start = FAM(ip_hash)(&b->addr, start);
	}
	if (client_route && FAM(route_flags)(&r->backend_addr))
		r->flags |= CT_CLUSTER;

	err = FAM(flow_insert_record)(cfg, start, r->flags & CT_SNAT, r->flags & CT_DNAT, now, p->proto);
	if (err)
		goto failed;
	if (ct_has_backend_alias(r->flags)) {
		err = FAM(flow_insert_backend_alias)(cfg, start, now);
		if (err)
			goto undo;
	}
	if (ct_has_frontend_alias(r->flags)) {
		lo = FAM(ct_key_frontend)(&s->key, r);
		FAM(ct_alias)(s, r, CT_ALIAS_FRONTEND, lo);
		err = FAM(ct_insert)(now);
		/* Taken: another processor made this flow at the same time; its is the one. */
		if (err == -EEXIST) {
			struct FAM(ct_entry) *own = FAM(ct_record)(&r->main, r->nonce, now);

			if (own)
				FAM(ct_delete)(&r->main);
			return FLOW_MADE;
		}
		if (err)
			goto undo;
	}
	return FLOW_MADE;
undo:
	FAM(ct_delete)(&r->main);
failed:
	/* Without a record a plain flow goes on as it would without Millrace. */
	if (!f)
		return FLOW_NONE;
	count(skb, err == -EEXIST ? REASON_NO_SNAT_PORT : REASON_CT_FULL);
	return FLOW_DROPPED;
}
