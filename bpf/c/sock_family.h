/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One family's part of sock.h, which includes this with FAMILY 4 and 6. */

#include "include/address_family.h"
#include "include/affinity_family.h"

/* The address and port of a call. */
static __always_inline void FAM(sock_read)(const struct bpf_sock_addr *ctx, struct FAM(frontend_key) *key, __u8 proto)
{
#if FAMILY == 4
	key->addr.w[0] = ctx->user_ip4;
#else
	key->addr.w[0] = ctx->user_ip6[0];
	key->addr.w[1] = ctx->user_ip6[1];
	key->addr.w[2] = ctx->user_ip6[2];
	key->addr.w[3] = ctx->user_ip6[3];
#endif
	key->port = ctx->user_port;
	key->proto = proto;
	key->pad = 0;
}

static __always_inline void FAM(sock_write)(struct bpf_sock_addr *ctx, const struct FAM(ip) *addr, __be16 port)
{
#if FAMILY == 4
	ctx->user_ip4 = addr->w[0];
#else
	ctx->user_ip6[0] = addr->w[0];
	ctx->user_ip6[1] = addr->w[1];
	ctx->user_ip6[2] = addr->w[2];
	ctx->user_ip6[3] = addr->w[3];
#endif
	ctx->user_port = port;
}

/* The socket's storage, or NULL when it has none and flags do not create it. */
static __always_inline struct FAM(sock_state) *FAM(sock_state_get)(struct bpf_sock_addr *ctx, __u64 flags)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_sk_storage_get(&FAM(sockets), sk, NULL, flags) : NULL;
}

static __always_inline bool FAM(sock_peer_is_frontend)(const struct FAM(sock_peer) *p,
						       const struct FAM(frontend_key) *key)
{
	return p->frontend_port == key->port && FAM(ip_equal)(&p->frontend_addr, &key->addr);
}

static __always_inline bool FAM(sock_peer_is_backend)(const struct FAM(sock_peer) *p, const struct FAM(ip) *addr,
						      __be16 port)
{
	return p->backend_port == port && FAM(ip_equal)(&p->backend_addr, addr);
}

/*
 * Searches, as global functions: the verifier goes through each of their loops
 * once, not once for every way that leads there. They return an index, and
 * SOCK_PEERS when nothing is found.
 */

/* The peer that is this backend; at most one is. */
__noinline __u32 FAM(sock_index_of_backend)(const struct FAM(sock_state) *state, const struct FAM(frontend_key) *key)
{
	if (!state || !key)
		return SOCK_PEERS;
	for (__u32 i = 0; i < SOCK_PEERS; i++) {
		const struct FAM(sock_peer) *p = &state->peers[i];

		if (p->used != SOCK_PEER_FREE && FAM(sock_peer_is_backend)(p, &key->addr, key->port))
			return i;
	}
	return SOCK_PEERS;
}

/* The peer that this frontend's datagrams go to. */
__noinline __u32 FAM(sock_index_of_frontend)(const struct FAM(sock_state) *state, const struct FAM(frontend_key) *key)
{
	if (!state || !key)
		return SOCK_PEERS;
	for (__u32 i = 0; i < SOCK_PEERS; i++) {
		const struct FAM(sock_peer) *p = &state->peers[i];

		if (p->used == SOCK_PEER_CURRENT && FAM(sock_peer_is_frontend)(p, key))
			return i;
	}
	return SOCK_PEERS;
}

/* A peer that is free, or else one that is past. */
__noinline __u32 FAM(sock_index_of_room)(const struct FAM(sock_state) *state)
{
	__u32 past = SOCK_PEERS;

	if (!state)
		return SOCK_PEERS;
	for (__u32 i = 0; i < SOCK_PEERS; i++) {
		if (state->peers[i].used == SOCK_PEER_FREE)
			return i;
		if (state->peers[i].used == SOCK_PEER_PAST)
			past = i;
	}
	return past;
}

static __always_inline struct FAM(sock_peer) *FAM(sock_peer_at)(struct FAM(sock_state) *state, __u32 index)
{
	if (index >= SOCK_PEERS)
		return NULL;
	asm volatile("" : "+r"(index)); /* the verifier must see the bound */
	return &state->peers[index & (SOCK_PEERS - 1)];
}

/*
 * The caller dials this address itself, so what comes from it is no longer a
 * service's answer.
 */
static __always_inline void FAM(sock_forget)(struct bpf_sock_addr *ctx, const struct FAM(frontend_key) *key)
{
	struct FAM(sock_state) *state = FAM(sock_state_get)(ctx, 0);
	struct FAM(sock_peer) *p;

	if (likely(!state))
		return;
	p = FAM(sock_peer_at)(state, FAM(sock_index_of_backend)(state, key));
	if (p)
		p->used = SOCK_PEER_FREE;
}

/*
 * The backend that a UDP socket already talks to behind this frontend, if the
 * service still has it: a flow keeps its backend. A peer that the service has
 * lost is kept for answers under way only.
 */
static __always_inline struct FAM(sock_peer) *FAM(sock_find_current)(struct FAM(sock_state) *state,
								     const struct FAM(frontend_key) *key,
								     const struct frontend *fe)
{
	struct FAM(sock_peer) *p = FAM(sock_peer_at)(state, FAM(sock_index_of_frontend)(state, key));
	struct FAM(backend) *b, had;
	__u32 offset, index;

	if (!p)
		return NULL;
	if (p->offset < fe->backend_count) {
		index = fe->first_backend + p->offset;
		b = bpf_map_lookup_elem(&FAM(backends), &index);
		if (b && FAM(sock_peer_is_backend)(p, &b->addr, b->port))
			return p;
	}
	/* The service changed; what is left of it may stand elsewhere. */
	had.addr = p->backend_addr;
	had.port = p->backend_port;
	had.flags = 0;
	offset = FAM(backend_find)(fe->first_backend, fe->backend_count, &had);
	if (offset < fe->backend_count) {
		p->offset = offset;
		return p;
	}
	p->used = SOCK_PEER_PAST;
	return NULL;
}

/* A place for a new pair of frontend and backend, or NULL. */
static __always_inline struct FAM(sock_peer) *FAM(sock_room)(struct FAM(sock_state) *state,
							     const struct FAM(frontend_key) *key,
							     const struct FAM(backend) *b)
{
	struct FAM(frontend_key) backend = { .addr = b->addr, .port = b->port };
	struct FAM(sock_peer) *p = FAM(sock_peer_at)(state, FAM(sock_index_of_backend)(state, &backend));

	/*
	 * Answers of a backend behind two frontends could not be told apart. The
	 * packet programs keep such flows apart by their ports.
	 */
	if (p)
		return p->used == SOCK_PEER_PAST || FAM(sock_peer_is_frontend)(p, key) ? p : NULL;
	return FAM(sock_peer_at)(state, FAM(sock_index_of_room)(state));
}

#include "sock_connected_family.h"

static __always_inline void FAM(sock_peer_set)(struct FAM(sock_peer) *p, const struct FAM(frontend_key) *key,
					       const struct FAM(backend) *b, __u16 offset)
{
	p->frontend_addr = key->addr;
	p->backend_addr = b->addr;
	p->frontend_port = key->port;
	p->backend_port = b->port;
	p->proto = key->proto;
	p->used = SOCK_PEER_CURRENT;
	p->offset = offset;
}

/* Remembers the peer of a socket that connects; false if there is no room. */
static __always_inline bool FAM(sock_remember_connect)(struct bpf_sock_addr *ctx, const struct FAM(frontend_key) *key,
						       const struct FAM(backend) *b)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct FAM(sock_state) *state;
	struct FAM(sock_peer) peer;

	if (key->proto == IPPROTO_TCP && sock_is_subflow(ctx))
		return true;
	FAM(sock_peer_set)(&peer, key, b, 0);
	if (likely(FAM(connected_set)(cookie, &peer)))
		return true;
	state = FAM(sock_state_get)(ctx, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return false;
	/* Of the socket's former peers none can answer any more. */
	FAM(sock_peer_set)(&state->peers[0], key, b, 0);
	for (int i = 1; i < SOCK_PEERS; i++)
		state->peers[i].used = SOCK_PEER_FREE;
	return true;
}

/* Remembers a backend that a datagram goes to; false if there is no room. */
static __always_inline bool FAM(sock_remember_sendmsg)(struct bpf_sock_addr *ctx, const struct FAM(frontend_key) *key,
						       const struct FAM(backend) *b, __u16 offset)
{
	struct FAM(sock_state) *state = FAM(sock_state_get)(ctx, BPF_SK_STORAGE_GET_F_CREATE);
	struct FAM(sock_peer) *p;

	if (!state)
		return false;
	p = FAM(sock_room)(state, key, b);
	if (!p)
		return false;
	FAM(sock_peer_set)(p, key, b, offset);
	return true;
}

/*
 * Whether the backend may be the caller itself, whose address this hook cannot
 * see: then something listens at the backend's port in the caller's own
 * namespace. Such calls are left to the packet programs, which know.
 */
static __always_inline bool FAM(sock_may_be_self)(struct bpf_sock_addr *ctx, const struct FAM(backend) *b, __u8 proto)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size;

#if FAMILY == 4
	tuple.ipv4.daddr = b->addr.w[0];
	tuple.ipv4.dport = b->port;
	size = sizeof(tuple.ipv4);
#else
	tuple.ipv6.daddr[0] = b->addr.w[0];
	tuple.ipv6.daddr[1] = b->addr.w[1];
	tuple.ipv6.daddr[2] = b->addr.w[2];
	tuple.ipv6.daddr[3] = b->addr.w[3];
	tuple.ipv6.dport = b->port;
	size = sizeof(tuple.ipv6);
#endif
	if (proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/*
 * The frontend at the call's address, if the caller may use it and the
 * dataplane is enabled.
 */
static __always_inline const struct frontend *FAM(sock_frontend)(struct bpf_sock_addr *ctx, const struct config *cfg,
								 const struct FAM(frontend_key) *key)
{
	const struct frontend *fe = bpf_map_lookup_elem(&FAM(frontends), key);

	if (fe && fe->flags & FRONTEND_HOST_ONLY && bpf_get_netns_cookie(ctx) != cfg->host_netns_cookie)
		return NULL;
	return fe;
}

/* Chooses a backend; false if the call must be left to the packet programs. */
static __always_inline bool FAM(sock_choose)(struct bpf_sock_addr *ctx, const struct config *cfg,
					     const struct frontend *fe, __u8 proto, struct FAM(backend) *to,
					     __u32 *offset)
{
	struct FAM(backend) *b;
	__u32 random, index;

	if (proto == IPPROTO_TCP) {
		random = bpf_get_prandom_u32();
	} else {
		/* The same for all datagrams of a socket that are not remembered. */
		random = (__u32)bpf_get_socket_cookie(ctx) * 0x9e3779b1 ^ fe->service_id * 0x85ebca6b;
		random ^= random >> 15;
		random *= 0xc2b2ae35;
	}
	if (unlikely(fe->affinity_timeout)) {
		__u64 cookie = bpf_get_netns_cookie(ctx);
		struct FAM(affinity_key) key = { .netns_cookie = { cookie, cookie >> 32 }, .service_id = fe->service_id };

		*offset = FAM(affinity_choose)(&key, fe, bpf_ktime_get_coarse_ns(), random);
	} else {
		*offset = ((__u64)random * fe->backend_count) >> 32;
	}
	index = fe->first_backend + *offset;
	b = bpf_map_lookup_elem(&FAM(backends), &index);
	if (!b)
		return false;
	*to = *b;
	if ((to->flags & (BACKEND_LOCAL | BACKEND_HOST_NETWORK)) != BACKEND_LOCAL)
		return true;
	return bpf_get_netns_cookie(ctx) == cfg->host_netns_cookie || !FAM(sock_may_be_self)(ctx, to, proto);
}

/* What becomes of a connect. */
static __noinline __maybe_unused int FAM(sock_connect_to)(struct bpf_sock_addr *ctx,
							  const struct FAM(frontend_key) *key, struct FAM(backend) *to)
{
	const struct config *cfg = config_get();
	const struct frontend *fe;
	__u32 offset;

	if (!cfg)
		return SOCK_LEAVE;
	fe = FAM(sock_frontend)(ctx, cfg, key);
	if (fe && !fe->backend_count && key->proto == IPPROTO_TCP)
		return SOCK_REFUSE;
	if (fe && fe->backend_count && FAM(sock_choose)(ctx, cfg, fe, key->proto, to, &offset) &&
	    FAM(sock_remember_connect)(ctx, key, to))
		return SOCK_TRANSLATE;

	if (unlikely(cfg->flags & CONFIG_BEHIND))
		return SOCK_LEAVE;
	/* What an earlier connect left would speak for this address, too. */
	FAM(connected_delete)(bpf_get_socket_cookie(ctx));
	FAM(sock_forget)(ctx, key);
	return SOCK_LEAVE;
}

/* What becomes of a datagram with an address. */
static __noinline __maybe_unused int FAM(sock_send_to)(struct bpf_sock_addr *ctx, const struct FAM(frontend_key) *key,
						       struct FAM(backend) *to)
{
	const struct config *cfg = config_get();
	struct FAM(sock_state) *state;
	struct FAM(sock_peer) *peer;
	const struct frontend *fe;
	__u32 offset;

	if (!cfg)
		return SOCK_LEAVE;
	/*
	 * The socket takes answers of its peer alone. If it dialled the peer by
	 * this frontend, so goes the datagram; else the connect was left alone,
	 * and so is this. (The kernel runs this program for every datagram of a
	 * socket whose peer is v4-mapped.)
	 */
	if (sock_is_connected(ctx)) {
		peer = FAM(connected_get)(bpf_get_socket_cookie(ctx));
		if (!peer || !FAM(sock_peer_is_frontend)(peer, key))
			return SOCK_LEAVE;
		to->addr = peer->backend_addr;
		to->port = peer->backend_port;
		return SOCK_TRANSLATE;
	}
	fe = FAM(sock_frontend)(ctx, cfg, key);
	if (!fe) {
		if (likely(!(cfg->flags & CONFIG_BEHIND)))
			FAM(sock_forget)(ctx, key);
		return SOCK_LEAVE;
	}
	/* Packets are answered with a port unreachable. */
	if (!fe->backend_count)
		return SOCK_LEAVE;
	state = FAM(sock_state_get)(ctx, 0);
	peer = state ? FAM(sock_find_current)(state, key, fe) : NULL;
	if (peer) {
		to->addr = peer->backend_addr;
		to->port = peer->backend_port;
		return SOCK_TRANSLATE;
	}
	if (FAM(sock_choose)(ctx, cfg, fe, key->proto, to, &offset) &&
	    FAM(sock_remember_sendmsg)(ctx, key, to, offset))
		return SOCK_TRANSLATE;
	return SOCK_LEAVE;
}

/* The frontend that the socket dialled to reach this backend; false if none. */
static __noinline __maybe_unused bool FAM(sock_translate_back)(struct bpf_sock_addr *ctx,
							       const struct FAM(frontend_key) *from,
							       struct FAM(frontend_key) *frontend)
{
	struct FAM(sock_state) *state;
	struct FAM(sock_peer) *p;

	if (ctx->type == SOCK_STREAM || sock_is_connected(ctx)) {
		p = FAM(connected_get)(bpf_get_socket_cookie(ctx));
		if (p && FAM(sock_peer_is_backend)(p, &from->addr, from->port))
			goto found;
	}
	state = FAM(sock_state_get)(ctx, 0);
	if (!state)
		return false;
	p = FAM(sock_peer_at)(state, FAM(sock_index_of_backend)(state, from));
	if (!p)
		return false;
found:
	frontend->addr = p->frontend_addr;
	frontend->port = p->frontend_port;
	return true;
}
