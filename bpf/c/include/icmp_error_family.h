/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about packets of translated flows. The packet inside is one that
 * the error's sender saw, so that it carries the tuple of that place, and the
 * error travels the other way: it is translated where the flow's packets of
 * its own direction are, inside and outside.
 */

/* What an error becomes. */
struct FAM(icmp_ends) {
	struct FAM(ip) src; /* of the error itself */
	struct FAM(ip) dst;
	struct FAM(ends) in; /* of the packet inside */
};

/* Room for an error as it is and as it becomes: too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct FAM(icmp_ends)[2]);
} FAM(icmp_scratch) SEC(".maps");

/* Reads the packet inside; its transport header's place, or 0. */
static __always_inline __u32 FAM(icmp_inner)(struct __sk_buff *skb, __u32 off, struct FAM(ends) *in, __u8 *proto)
{
	__be16 ports[2];
	__u32 l4_off;
#if FAMILY == 4
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
	    (ip.frag_off & bpf_htons(0x1fff)))
		return 0;
	in->src.w[0] = ip.saddr;
	in->dst.w[0] = ip.daddr;
	*proto = ip.protocol;
	l4_off = off + ip.ihl * 4;
#else
	struct extension_walk w = { .off = off + sizeof(struct ipv6hdr) };
	__u8 version;

	if (bpf_skb_load_bytes(skb, off, &version, sizeof(version)) || version >> 4 != 6 ||
	    bpf_skb_load_bytes(skb, off + offsetof(struct ipv6hdr, nexthdr), &w.nexthdr, sizeof(w.nexthdr)) ||
	    bpf_skb_load_bytes(skb, off + offsetof(struct ipv6hdr, saddr), &in->src, 2 * sizeof(in->src)))
		return 0;
	if (!walk_extensions(skb, &w) || w.fragment == FRAGMENT_LATER)
		return 0;
	*proto = w.nexthdr;
	l4_off = w.off;
#endif
	if (*proto != IPPROTO_TCP && *proto != IPPROTO_UDP)
		return 0;
	if (bpf_skb_load_bytes(skb, l4_off, ports, sizeof(ports)))
		return 0;
	in->sport = ports[0];
	in->dport = ports[1];
	return l4_off;
}

/* Fills what the error becomes at this hook; false if it is to pass as it is. */
static __always_inline bool FAM(icmp_translate)(const struct FAM(ct_hit) *hit, enum hook hook,
						struct FAM(icmp_ends) *to)
{
	const struct FAM(ct_entry) *r = hit->record;
	bool inner_orig = hit->dir == CT_ORIG;
	/* The client's, and the service's, side of the translation. */
	bool client_side = false, service_side = false;

	if (hook == HOOK_INGRESS) {
		if (inner_orig)
			client_side = hit->kind == CT_RECORD && (r->flags & (CT_SNAT | CT_HOST_CLIENT));
		else
			service_side = hit->kind == CT_ALIAS_FRONTEND;
	} else {
		if (hit->kind == CT_ALIAS_FRONTEND || (hit->kind == CT_RECORD && (r->flags & CT_SNAT)))
			return false;
		if (inner_orig)
			service_side = r->flags & CT_DNAT;
		else
			client_side = r->flags & CT_SNAT;
	}
	if (!client_side && !service_side)
		return false;
	if (r->flags & (CT_HAIRPIN | CT_HOST_CLIENT)) /* both at one place */
		client_side = service_side = true;

	if (inner_orig) { /* the error goes to the client */
		if (client_side) {
			to->in.src = r->client_addr;
			to->in.sport = r->stack_port;
			to->dst = r->client_addr;
		}
		if (service_side) {
			if (FAM(ip_equal)(&to->src, &r->backend_addr))
				to->src = r->frontend_addr;
			to->in.dst = r->frontend_addr;
			to->in.dport = r->frontend_port;
			to->in.sport = r->client_port;
		}
	} else { /* to the backend */
		if (service_side) {
			to->in.src = r->backend_addr;
			to->in.sport = r->backend_port;
			to->in.dport = r->stack_port;
			to->dst = r->backend_addr;
		}
		if (client_side) {
			if (FAM(ip_equal)(&to->src, &r->client_addr))
				to->src = r->source_addr;
			to->in.dst = r->source_addr;
			to->in.dport = r->source_port;
		}
	}
	return true;
}

/* Applies diff to the 16-bit checksum at off; adds what it changes by to *sum. */
static __noinline int FAM(icmp_check)(struct __sk_buff *skb, __u32 off, __u64 diff, __u64 *sum, bool udp)
{
	__u16 check, fixed;

	if (bpf_skb_load_bytes(skb, off, &check, sizeof(check)))
		return 0; /* beyond what the error quotes */
	if (udp && !check)
		return 0;
	fixed = csum_apply(check, diff);
	if (udp && !fixed)
		fixed = 0xffff;
	*sum += csum_diff(check, fixed);
	return bpf_skb_store_bytes(skb, off, &fixed, sizeof(fixed), 0);
}

/* Writes the translation, and the checksums of all that changed. */
static __noinline int FAM(icmp_write)(struct __sk_buff *skb, __u32 icmp_off, __u32 inner_l4, __u8 proto,
				      const struct FAM(icmp_ends) *from)
{
	const struct FAM(icmp_ends) *to = from + 1;
	__u32 inner_off = icmp_off + sizeof(struct icmphdr);
	__u32 ports[2] = { from->in.sport | (__u32)from->in.dport << 16, to->in.sport | (__u32)to->in.dport << 16 };
	__u64 inner_addrs = FAM(ip_diff)(&from->in.src, &to->in.src) + FAM(ip_diff)(&from->in.dst, &to->in.dst);
	__u64 outer_addrs = FAM(ip_diff)(&from->src, &to->src) + FAM(ip_diff)(&from->dst, &to->dst);
	__u64 inner_ports = csum_diff(ports[0], ports[1]);
	__u64 body = csum_fold32(inner_addrs + inner_ports); /* change of the sum that ICMP covers */
	__u64 ignored = 0;
	int err;

	err = bpf_skb_store_bytes(skb, inner_l4, &ports[1], sizeof(ports[1]), 0);
	err |= FAM(icmp_check)(skb, inner_l4 + (proto == IPPROTO_TCP ? TCP_CHECK_OFF : UDP_CHECK_OFF),
			       inner_addrs + inner_ports, &body, proto == IPPROTO_UDP);
#if FAMILY == 4
	err |= bpf_skb_store_bytes(skb, inner_off + offsetof(struct iphdr, saddr), &to->in.src, 4, 0);
	err |= bpf_skb_store_bytes(skb, inner_off + offsetof(struct iphdr, daddr), &to->in.dst, 4, 0);
	err |= FAM(icmp_check)(skb, inner_off + offsetof(struct iphdr, check), inner_addrs, &body, false);
	err |= FAM(icmp_check)(skb, ETH_HLEN + offsetof(struct iphdr, check), outer_addrs, &ignored, false);
	err |= bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), &to->src, 4, 0);
	err |= bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &to->dst, 4, 0);
	err |= FAM(icmp_check)(skb, icmp_off + offsetof(struct icmphdr, checksum), body, &ignored, false);
#else
	err |= bpf_skb_store_bytes(skb, inner_off + offsetof(struct ipv6hdr, saddr), &to->in.src, 16, 0);
	err |= bpf_skb_store_bytes(skb, inner_off + offsetof(struct ipv6hdr, daddr), &to->in.dst, 16, 0);
	err |= bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), &to->src, 16, 0);
	err |= bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, daddr), &to->dst, 16, 0);
	err |= FAM(icmp_check)(skb, icmp_off + offsetof(struct icmp6hdr, icmp6_cksum),
			       csum_fold32(body) + (__u64)csum_fold32(outer_addrs), &ignored, false);
#endif
	return err;
}

/* A global function: verified once, not at every place that it is called from. */
__noinline int FAM(icmp_error)(struct __sk_buff *skb, __u32 icmp_off, __u32 hook)
{
	__u32 zero = 0;
	struct FAM(icmp_ends) *from = bpf_map_lookup_elem(&FAM(icmp_scratch), &zero);
	struct FAM(icmp_ends) *to;
	struct FAM(ct_key) key;
	struct FAM(ct_hit) hit;
	__u32 inner_l4;
	bool src_is_lo;
	__u8 proto = 0;

	if (!from)
		return PASS;
	to = from + 1;
#if FAMILY == 4
	if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), from, 8))
		return PASS;
#else
	if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), from, 32))
		return PASS;
#endif
	inner_l4 = FAM(icmp_inner)(skb, icmp_off + sizeof(struct icmphdr), &from->in, &proto);
	if (!inner_l4)
		return PASS;
	src_is_lo = FAM(ct_key_set)(&key, &from->in.src, from->in.sport, &from->in.dst, from->in.dport, proto);
	if (!FAM(ct_lookup)(&key, src_is_lo, bpf_ktime_get_coarse_ns(), &hit))
		return PASS;
	*to = *from;
	if (!FAM(icmp_translate)(&hit, hook, to))
		return PASS;
	if (FAM(icmp_write)(skb, icmp_off, inner_l4, proto, from))
		return drop(skb, REASON_REWRITE);
	return hit.record->flags & CT_HAIRPIN ? reflect_finished(skb, 0) : PASS;
}
