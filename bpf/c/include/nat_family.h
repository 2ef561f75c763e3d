/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Rewriting addresses and ports. */

/* What a packet's ends become. */
struct FAM(ends) {
	struct FAM(ip) src;
	struct FAM(ip) dst;
	__be16 sport;
	__be16 dport;
};

/*
 * Writes new ends into a packet, and takes one from its hop limit if it will
 * not see the stack.
 *
 * Checksums are adjusted, never computed, and through the helper, which knows
 * what the transport checksum holds at the moment: the whole, or (when a device
 * is to finish it, and for GSO) the pseudo header alone. Then only the change
 * of addresses counts. A UDP checksum of zero stays zero.
 */
__noinline int FAM(nat_rewrite)(struct __sk_buff *skb, const struct FAM(packet) *p, const struct FAM(ends) *to,
				__u32 forwarded)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 check_off, from_ports, to_ports;
	__u64 mangled_0, addr_diff;
	bool addrs_change;

	if (!p || !to || data + ETH_HLEN + IP_HLEN > end)
		return -1;
	check_off = p->l4_off + (p->proto == IPPROTO_TCP ? TCP_CHECK_OFF : UDP_CHECK_OFF);
	mangled_0 = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	addr_diff = FAM(ip_diff)(&p->src, &to->src) + FAM(ip_diff)(&p->dst, &to->dst);
	addrs_change = !FAM(ip_equal)(&p->src, &to->src) || !FAM(ip_equal)(&p->dst, &to->dst);
	from_ports = p->sport | (__u32)p->dport << 16;
	to_ports = to->sport | (__u32)to->dport << 16;
	{
#if FAMILY == 4
		struct iphdr *ip = data + ETH_HLEN;
		__u64 diff = addr_diff;

		ip->saddr = to->src.w[0];
		ip->daddr = to->dst.w[0];
		if (forwarded) {
			ip->ttl--;
			diff += csum_diff(bpf_htons(1 << 8), 0);
		}
		ip->check = csum_apply(ip->check, diff);
#else
		struct ipv6hdr *ip = data + ETH_HLEN;

		__builtin_memcpy(&ip->saddr, &to->src, sizeof(to->src));
		__builtin_memcpy(&ip->daddr, &to->dst, sizeof(to->dst));
		if (forwarded)
			ip->hop_limit--;
#endif
	}
#if FAMILY == 6
	/*
	 * There is no header checksum to make up for the addresses in a sum of
	 * the whole packet that a device may have left with it; the helper
	 * below assumes there is. A later fragment has such a sum, too.
	 */
	if (addrs_change || forwarded)
		bpf_csum_update(skb, csum_fold32(addr_diff + (forwarded ? csum_diff(bpf_htons(1), 0) : 0)));
#endif
	if (unlikely(p->fragment == FRAGMENT_LATER))
		return 0;
	if (from_ports != to_ports) {
		__u32 *ports = data + p->l4_off;

		if (p->l4_off > PULL_LEN || (void *)(ports + 1) > end)
			return -1;
		*ports = to_ports;
	}
	if (addrs_change && bpf_l4_csum_replace(skb, check_off, 0, csum_fold32(addr_diff), BPF_F_PSEUDO_HDR | mangled_0))
		return -1;
	if (from_ports != to_ports &&
	    bpf_l4_csum_replace(skb, check_off, 0, csum_fold32(csum_diff(from_ports, to_ports)), mangled_0))
		return -1;
	return 0;
}
