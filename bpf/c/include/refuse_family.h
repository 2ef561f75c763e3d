/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Answers in the place of a service without backends. */

/* The pseudo header's sum of a packet from from to to. */
static __always_inline __u64 FAM(pseudo_sum)(const struct FAM(ip) *from, const struct FAM(ip) *to, __u8 proto,
					     __u16 len)
{
	__u64 sum = bpf_htons(proto) + (__u64)bpf_htons(len);

#pragma unroll
	for (int i = 0; i < IP_WORDS; i++)
		sum += (__u64)from->w[i] + to->w[i];
	return sum;
}

#if FAMILY == 4
#define IP_HEADER iphdr
#define ICMP_PROTO IPPROTO_ICMP
#else
#define IP_HEADER ipv6hdr
#define ICMP_PROTO IPPROTO_ICMPV6
#endif

static __always_inline void FAM(answer_ip)(struct IP_HEADER *ip, const struct FAM(packet) *p, __u8 proto, __u16 len)
{
	__builtin_memset(ip, 0, sizeof(*ip));
#if FAMILY == 4
	__u64 sum = 0;

	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + len);
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = proto;
	ip->saddr = p->dst.w[0];
	ip->daddr = p->src.w[0];
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum += ((__u32 *)ip)[i];
	ip->check = ~csum_fold16(sum);
#else
	ip->version = 6;
	ip->payload_len = bpf_htons(len);
	ip->nexthdr = proto;
	ip->hop_limit = 64;
	__builtin_memcpy(&ip->saddr, &p->dst, sizeof(p->dst));
	__builtin_memcpy(&ip->daddr, &p->src, sizeof(p->src));
#endif
}

/*
 * Whether a device is to finish the transport checksum, which then holds the
 * pseudo header's sum alone. No field tells; but the helper leaves such a
 * checksum alone when something behind the pseudo header changes.
 */
static __always_inline bool FAM(checksum_is_partial)(struct __sk_buff *skb, __u32 check_off, __u16 *check)
{
	__u16 after;

	if (bpf_skb_load_bytes(skb, check_off, check, sizeof(*check)) ||
	    bpf_l4_csum_replace(skb, check_off, 0, 1, sizeof(*check)) ||
	    bpf_skb_load_bytes(skb, check_off, &after, sizeof(after)))
		return false;
	if (after == *check)
		return true;
	bpf_skb_store_bytes(skb, check_off, check, sizeof(*check), 0);
	return false;
}

/* TCP: a reset that acknowledges the SYN. */
static __always_inline int FAM(refuse_tcp)(struct __sk_buff *skb, const struct FAM(packet) *p)
{
	struct {
		struct IP_HEADER ip;
		struct tcphdr tcp;
	} a;
	__u64 sum;
	__u16 check;
	__u32 payload;
	bool partial;

	/* Before the tail goes: data behind the SYN counts in the answer. */
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &a.ip, sizeof(a.ip)))
		return -1;
#if FAMILY == 4
	payload = (__u32)bpf_ntohs(a.ip.tot_len) - sizeof(a.ip) - p->tcp_hlen;
#else
	payload = (__u32)bpf_ntohs(a.ip.payload_len) - p->tcp_hlen;
#endif
	if (payload > 0xffff)
		return -1;
	partial = FAM(checksum_is_partial)(skb, p->l4_off + TCP_CHECK_OFF, &check);
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(a), 0))
		return -1;
	FAM(answer_ip)(&a.ip, p, IPPROTO_TCP, sizeof(a.tcp));
	__builtin_memset(&a.tcp, 0, sizeof(a.tcp));
	a.tcp.source = p->dport;
	a.tcp.dest = p->sport;
	a.tcp.ack_seq = bpf_htonl(p->seq + 1 + payload);
	((__u8 *)&a.tcp)[12] = (sizeof(a.tcp) / 4) << 4;
	((__u8 *)&a.tcp)[13] = TCP_RST | TCP_ACK;
	sum = FAM(pseudo_sum)(&p->dst, &p->src, IPPROTO_TCP, sizeof(a.tcp));
	if (partial) {
		check = csum_fold16(sum);
	} else {
		sum += p->dport + (__u64)p->sport + a.tcp.ack_seq + ((__u32 *)&a.tcp)[3];
		check = ~csum_fold16(sum);
	}
	a.tcp.check = check;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &a, sizeof(a), BPF_F_RECOMPUTE_CSUM))
		return -1;
	return 0;
}

/* UDP: port unreachable, which quotes the IP header and the UDP header. */
static __always_inline int FAM(refuse_udp)(struct __sk_buff *skb, const struct FAM(packet) *p)
{
	struct {
		struct IP_HEADER ip;
		struct icmphdr icmp;
		union {
			struct {
				struct IP_HEADER ip;
				struct udphdr udp;
			} in;
			__u32 words[(sizeof(struct IP_HEADER) + sizeof(struct udphdr)) / 4];
		};
	} a;
	__u64 sum = 0;
	__u16 check;
	bool partial;

	partial = FAM(checksum_is_partial)(skb, p->l4_off + UDP_CHECK_OFF, &check);
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(a.in), 0))
		return -1;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &a.in, sizeof(a.in)) ||
	    bpf_skb_adjust_room(skb, sizeof(a) - sizeof(a.in), BPF_ADJ_ROOM_MAC, 0))
		return -1;
	FAM(answer_ip)(&a.ip, p, ICMP_PROTO, sizeof(a) - sizeof(a.ip));
	__builtin_memset(&a.icmp, 0, sizeof(a.icmp));
#if FAMILY == 4
	a.icmp.type = ICMP_DEST_UNREACH;
	a.icmp.code = ICMP_PORT_UNREACH;
#else
	a.icmp.type = ICMPV6_DEST_UNREACH;
	a.icmp.code = ICMPV6_PORT_UNREACH;
	sum = FAM(pseudo_sum)(&p->dst, &p->src, ICMP_PROTO, sizeof(a) - sizeof(a.ip));
#endif
	sum += *(__u32 *)&a.icmp;
#pragma unroll
	for (int i = 0; i < sizeof(a.in) / 4; i++) {
		/*
		 * A UDP header that a device finishes will sum up to the
		 * complement of what its checksum holds now.
		 */
		if (i == sizeof(struct IP_HEADER) / 4 && partial) {
			sum += (__u16)~check;
			break;
		}
		sum += a.words[i];
	}
	a.icmp.checksum = ~csum_fold16(sum);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &a, sizeof(a.ip) + sizeof(a.icmp), BPF_F_RECOMPUTE_CSUM))
		return -1;
	return 0;
}

/*
 * Turns a packet into the answer and sends it back by its device: out of it, or
 * with BPF_F_INGRESS into the node. A global function: verified once.
 */
__noinline int FAM(refuse)(struct __sk_buff *skb, const struct FAM(packet) *p, __u32 redirect_flags)
{
	int err;

	if (!p)
		return DROP;
	/* Options would have to be taken out first; later fragments were answered with the first. */
	if (p->l4_off != ETH_HLEN + IP_HLEN || p->fragment == FRAGMENT_LATER)
		return drop(skb, REASON_UNSUPPORTED);
	count(skb, REASON_NO_BACKEND);
	err = p->proto == IPPROTO_TCP ? FAM(refuse_tcp)(skb, p) : FAM(refuse_udp)(skb, p);
	return err ? drop(skb, REASON_REWRITE) : reflect_finished(skb, redirect_flags);
}

#undef IP_HEADER
#undef ICMP_PROTO
