/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading a packet: addresses, ports, and where its headers stand. */

#if FAMILY == 4
#define IP_HLEN sizeof(struct iphdr)
#else
#define IP_HLEN sizeof(struct ipv6hdr)
#endif

struct FAM(packet) {
	struct FAM(ip) src;
	struct FAM(ip) dst;
	__be16 sport;
	__be16 dport;
	__u16 l4_off;	/* of the transport header, from the packet's start */
	__u8 proto;	/* IPPROTO_TCP or IPPROTO_UDP */
	__u8 fragment;	/* enum fragment_place */
	__u8 tcp_flags; /* 0 unless TCP */
	__u8 tcp_hlen;	/* bytes */
	__u8 hop_limit;
	__u8 pad;
	__u32 seq; /* host order */
	__u32 ack;
	__be32 fragment_id;
};

/*
 * The ports of a fragment: the first one leaves them for the later ones. False
 * if they are not known.
 */
static __noinline bool FAM(fragment_ports)(struct FAM(packet) *p)
{
	struct FAM(fragment_key) key = { .src = p->src, .dst = p->dst, .id = p->fragment_id, .proto = p->proto };
	struct fragment value = { .src_port = p->sport, .dst_port = p->dport };
	const struct fragment *known;

	if (p->fragment == FRAGMENT_FIRST) {
		bpf_map_update_elem(&FAM(fragments), &key, &value, BPF_ANY);
		return true;
	}
	known = bpf_map_lookup_elem(&FAM(fragments), &key);
	if (!known)
		return false;
	p->sport = known->src_port;
	p->dport = known->dst_port;
	return true;
}

#if FAMILY == 6
#define MAX_EXTENSION_HEADERS 8

struct extension_walk {
	__u16 off;    /* of the first header that is no extension */
	__u8 nexthdr; /* its number */
	__u8 fragment;
	__be32 fragment_id;
};

/*
 * Walks the extension headers from w->off on. False if there is one that these
 * programs must not look behind (a routing header that has not come to its end:
 * the destination is not the final one) or that ends the packet.
 */
static __noinline bool walk_extensions(struct __sk_buff *skb, struct extension_walk *w)
{
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct {
			__u8 nexthdr;
			__u8 len;
			__be16 frag_off; /* of a fragment header; in a routing header: type, segments left */
			__be32 id;
		} ext;

		switch (w->nexthdr) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		default:
			return true;
		}
		if (bpf_skb_load_bytes(skb, w->off, &ext, sizeof(ext)))
			return false;
		if (w->nexthdr == IPPROTO_FRAGMENT) {
			__u16 off = bpf_ntohs(ext.frag_off);

			/* An atomic fragment (offset 0, no more) is a whole packet. */
			if (off & 0xfff8)
				w->fragment = FRAGMENT_LATER;
			else if (off & 1)
				w->fragment = FRAGMENT_FIRST;
			w->fragment_id = ext.id;
			w->off += 8;
		} else if (w->nexthdr == IPPROTO_AH) {
			w->off += (ext.len + 2) * 4;
		} else {
			if (w->nexthdr == IPPROTO_ROUTING && (bpf_ntohs(ext.frag_off) & 0xff))
				return false;
			w->off += (ext.len + 1) * 8;
		}
		w->nexthdr = ext.nexthdr;
		/* Behind this point there is no header in a later fragment. */
		if (w->fragment == FRAGMENT_LATER)
			return true;
	}
	return false;
}
#endif

/* The IP header; sets proto, l4_off, addresses, fragment. */
static __always_inline bool FAM(parse_ip)(struct __sk_buff *skb, void *ip_at, struct FAM(packet) *p)
{
#if FAMILY == 4
	struct iphdr *ip = ip_at;
	__u16 frag = ip->frag_off & bpf_htons(0x3fff);

	if (ip->version != 4 || ip->ihl < 5)
		return false;
	p->src.w[0] = ip->saddr;
	p->dst.w[0] = ip->daddr;
	p->proto = ip->protocol;
	p->hop_limit = ip->ttl;
	p->l4_off = ETH_HLEN + ip->ihl * 4;
	if (unlikely(frag)) {
		p->fragment = frag & bpf_htons(0x1fff) ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->fragment_id = ip->id;
	}
	return true;
#else
	struct ipv6hdr *ip = ip_at;

	if (ip->version != 6)
		return false;
	__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
	p->hop_limit = ip->hop_limit;
	p->l4_off = ETH_HLEN + IP_HLEN;
	p->proto = ip->nexthdr;
	if (unlikely(p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_ICMPV6)) {
		struct extension_walk w = { .off = p->l4_off, .nexthdr = p->proto };

		if (!walk_extensions(skb, &w))
			return false;
		p->l4_off = w.off;
		p->proto = w.nexthdr;
		p->fragment = w.fragment;
		p->fragment_id = w.fragment_id;
	}
	return true;
#endif
}

/*
 * Returns an enum parsed. This and the other global functions are verified once,
 * by themselves; inlined, each of their outcomes would be followed through all
 * that comes after.
 */
__noinline int FAM(parse)(struct __sk_buff *skb, struct FAM(packet) *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 l4_off;
	void *l4;

	if (!p)
		return PARSED_OTHER;
	if (unlikely(data + ETH_HLEN + IP_HLEN + sizeof(struct tcphdr) > end)) {
		if (!is_linear(skb) && pull_headers(skb))
			return PARSED_OTHER;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + ETH_HLEN + IP_HLEN > end)
			return PARSED_OTHER;
	}
	/* No Ethernet header (a tunnel device), or not the one of this protocol: not read here. */
	if (((struct ethhdr *)data)->h_proto != skb->protocol || !FAM(parse_ip)(skb, data + ETH_HLEN, p))
		return PARSED_OTHER;
	if (unlikely(p->fragment == FRAGMENT_LATER)) {
		if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP)
			return PARSED_OTHER;
		/*
		 * Without the ports nobody can tell a service's fragment from
		 * any other, so that an unknown one passes.
		 */
		return FAM(fragment_ports)(p) ? PARSED_FLOW : PARSED_OTHER;
	}
	l4_off = p->l4_off;
	if (l4_off > PULL_LEN - sizeof(struct tcphdr))
		return PARSED_OTHER;
	l4 = data + l4_off;
	barrier_var(l4);
	if (unlikely(l4 + sizeof(struct tcphdr) > end) && !is_linear(skb)) {
		if (pull_headers(skb))
			return PARSED_OTHER;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		l4 = data + l4_off;
		barrier_var(l4);
	}
	if (likely(p->proto == IPPROTO_TCP)) {
		struct tcphdr *tcp = l4;

		if (l4 + sizeof(*tcp) > end)
			return PARSED_OTHER;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->tcp_hlen = (((__u8 *)tcp)[12] >> 4) * 4;
		p->seq = bpf_ntohl(tcp->seq);
		p->ack = bpf_ntohl(tcp->ack_seq);
	} else if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if (l4 + sizeof(*udp) > end)
			return PARSED_OTHER;
		p->sport = udp->source;
		p->dport = udp->dest;
#if FAMILY == 4
	} else if (p->proto == IPPROTO_ICMP) {
		__u8 *type = l4;

		if (l4 + sizeof(struct icmphdr) > end || p->fragment)
			return PARSED_OTHER;
		return *type == ICMP_DEST_UNREACH || *type == ICMP_TIME_EXCEEDED || *type == ICMP_PARAMETERPROB ?
			       PARSED_ICMP_ERROR :
			       PARSED_OTHER;
#else
	} else if (p->proto == IPPROTO_ICMPV6) {
		__u8 *type = l4;

		if (l4 + sizeof(struct icmp6hdr) > end || p->fragment)
			return PARSED_OTHER;
		return *type >= ICMPV6_DEST_UNREACH && *type <= ICMPV6_PARAMPROB ? PARSED_ICMP_ERROR : PARSED_OTHER;
#endif
	} else {
		return PARSED_OTHER;
	}
	if (unlikely(p->fragment))
		FAM(fragment_ports)(p);
	return PARSED_FLOW;
}
