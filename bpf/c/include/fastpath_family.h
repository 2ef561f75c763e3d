/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The fast path: established flows of the cluster past the host's stack. */

/* Both translations at once. */
static __always_inline void FAM(ends_final)(struct FAM(ends) *to, const struct FAM(ct_entry) *r, __u8 dir)
{
	if (dir == CT_ORIG) {
		to->src = r->source_addr;
		to->sport = r->source_port;
		to->dst = r->backend_addr;
		to->dport = r->backend_port;
	} else {
		to->src = r->frontend_addr;
		to->sport = r->frontend_port;
		to->dst = r->client_addr;
		to->dport = r->client_port;
	}
}

/*
 * Whether a packet may go past the stack: netfilter has let both directions of
 * its flow through as they are, and nothing about it needs the stack. What
 * opens and closes a connection takes the slow way, so that the host's
 * conntrack sees both.
 */
static __always_inline bool FAM(fast_path_allowed)(const struct FAM(packet) *p, const struct FAM(ct_entry) *r,
						   const struct config *cfg)
{
	return (cfg->flags & CONFIG_FAST_PATH) && (r->flags & CT_CLUSTER) && r->state == CT_ESTABLISHED &&
	       r->out_ifindex[0] && r->out_ifindex[1] && !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) &&
	       !p->fragment && p->l4_off == ETH_HLEN + IP_HLEN && p->hop_limit > 1;
}

/* The length that a device's MTU bounds: of a GSO packet, what one segment will have. */
static __always_inline __u32 FAM(ip_length)(const struct __sk_buff *skb, const struct FAM(packet) *p)
{
	if (!skb->gso_size)
		return skb->len - ETH_HLEN;
	return p->l4_off - ETH_HLEN + skb->gso_size +
	       (p->proto == IPPROTO_TCP ? p->tcp_hlen : sizeof(struct udphdr));
}

/* Fills the question for the next hop of a packet with new ends. */
static __always_inline void FAM(fib_prepare)(struct bpf_fib_lookup *fib, const struct __sk_buff *skb,
					     const struct FAM(packet) *p, const struct FAM(ends) *to)
{
	__builtin_memset(fib, 0, sizeof(*fib));
#if FAMILY == 4
	fib->family = 2; /* AF_INET */
	fib->ipv4_src = to->src.w[0];
	fib->ipv4_dst = to->dst.w[0];
#else
	fib->family = 10; /* AF_INET6 */
	__builtin_memcpy(fib->ipv6_src, &to->src, sizeof(to->src));
	__builtin_memcpy(fib->ipv6_dst, &to->dst, sizeof(to->dst));
#endif
	fib->l4_protocol = p->proto;
	fib->sport = to->sport;
	fib->dport = to->dport;
	fib->tot_len = FAM(ip_length)(skb, p);
	fib->ifindex = skb->ifindex;
}

#define FAST_PATH_NOT_TAKEN (-2)

/* Translates and redirects; the packet is untouched when it is not taken. */
static __noinline int FAM(fast_path)(struct __sk_buff *skb, const struct FAM(packet) *p,
					  const struct FAM(ct_entry) *r, __u8 dir)
{
	__u32 ifindex = r->out_ifindex[dir & 1];
	bool to_pod = r->out_kind[dir & 1] == DEVICE_POD;
	struct bpf_fib_lookup fib;
	struct FAM(ends) to;

	FAM(ends_final)(&to, r, dir);
	if (to_pod) {
		__u32 mtu = 0;

		/* Asked for the MTU, not for the verdict, which is lenient with GSO; negative when the device is gone. */
		if (bpf_check_mtu(skb, ifindex, &mtu, 0, 0) < 0 || FAM(ip_length)(skb, p) > mtu)
			return FAST_PATH_NOT_TAKEN;
	} else {
		FAM(fib_prepare)(&fib, skb, p, &to);
		if (bpf_fib_lookup(skb, &fib, sizeof(fib), 0) || fib.ifindex != ifindex) {
			count(skb, REASON_FIB);
			return FAST_PATH_NOT_TAKEN;
		}
	}
	if (FAM(nat_rewrite)(skb, p, &to, true))
		return drop(skb, REASON_REWRITE);
	if (to_pod)
		return bpf_redirect_peer(ifindex, 0);
	{
		void *data = (void *)(long)skb->data;
		struct ethhdr *eth = data;

		if (data + sizeof(*eth) > (void *)(long)skb->data_end)
			return drop(skb, REASON_REWRITE);
		__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	}
	return redirect_finished(skb, ifindex);
}
