/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Layouts of map keys and values that exist once per address family. Included
 * by types.h with FAMILY 4 and 6; FAM(x) names x in the family at hand. The Go
 * side of every struct is in package layout, and a test compares the two by
 * BTF: change both together.
 *
 * Every struct is free of implicit padding: the kernel hashes keys as bytes,
 * and padding would make equal keys differ.
 */

/* An address in network order. */
struct FAM(ip) {
	__be32 w[IP_WORDS];
};

/* What a client dials. */
struct FAM(frontend_key) {
	struct FAM(ip) addr;
	__be16 port;
	__u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad;
};

/*
 * An element of backends_vN. Those of one frontend are sorted by address, then
 * port, both as big-endian numbers, and none is there twice.
 */
struct FAM(backend) {
	struct FAM(ip) addr;
	__be16 port;
	__u16 flags; /* enum backend_flags */
};

/*
 * A key of affinity_vN: a client of a service port. Packets tell the client's
 * address. Sockets do not, and stand for all of their network namespace; so do
 * packets of the host itself. A pod is known by its cookie where its calls are
 * translated, and by its address where its packets are.
 */
struct FAM(affinity_key) {
	struct FAM(ip) client;	 /* 0: known by its namespace */
	__u32 netns_cookie[2];	 /* low and high half (a whole one would need padding); 0: known by its address */
	__u32 service_id;
};

/*
 * The backend that a client had last, by its address and port and not by its
 * place: what stands at a place changes, and a backend that the service lost
 * must not be found.
 */
struct FAM(affinity) {
	struct FAM(ip) backend_addr;
	__be16 backend_port;
	__u16 offset; /* where in the service's range it stood last: looked at first */
	__u32 used;   /* when the client connected last, in ticks of affinity */
};

/* A socket's dialled service and the backend it got. */
struct FAM(sock_peer) {
	struct FAM(ip) frontend_addr;
	struct FAM(ip) backend_addr;
	__be16 frontend_port;
	__be16 backend_port;
	__u8 proto;
	__u8 used;    /* enum sock_peer_used */
	__u16 offset; /* backend's index within the service's range when it was chosen */
};

/*
 * An element of connected_vN: the peer of one connected socket. A socket whose
 * slot another one has stands in spilled_vN.
 */
struct FAM(connected) {
	__u64 cookie;  /* of the socket; 0: free */
	__u32 spilled; /* entries of spilled_vN that belong here */
	__u32 pad;
	struct FAM(sock_peer) peer;
};

/*
 * A flow's tuple without direction: lo is the end with the lower (address,
 * port), compared as big-endian numbers, so that both directions of a tuple
 * have one key.
 */
struct FAM(ct_key) {
	struct FAM(ip) lo;
	struct FAM(ip) hi;
	__be16 lo_port;
	__be16 hi_port;
	__u8 proto;
	__u8 pad[3];
};

/*
 * A conntrack entry. A flow has up to three tuples:
 *   T1 client <-> frontend   as the client sends it
 *   T2 client <-> backend    as the host's own stack and netfilter see it; the
 *                            client's port is another one (stack_port) when a
 *                            live flow has this tuple already
 *   T3 source <-> backend    as the backend sees it
 * without source translation T2 and T3 are one, without service translation
 * all three are. The record stands once, under T3 (kind CT_RECORD). The other
 * tuples have aliases (CT_ALIAS_*), which name the record by key and nonce and
 * count as absent when no record with that nonce is there.
 */
struct FAM(ct_entry) {
	__u64 expires;		    /* coarse monotonic ns; later is a miss. Aliases: 0, they live as long as their record */
	__u32 nonce;		    /* random; equal in a record and its aliases */
	__u8 kind;		    /* enum ct_kind */
	__u8 state;		    /* enum ct_state, in the record */
	__u16 flags;		    /* enum ct_flags */
	struct FAM(ct_key) main;    /* key of the record (T3); in the record its own */
	/* From here on only in records. */
	struct FAM(ip) client_addr; /* T1, T2 */
	struct FAM(ip) frontend_addr;
	__be16 client_port;
	__be16 frontend_port;
	__u32 service_id;	    /* 0: not a service */
	struct FAM(ip) source_addr; /* T3: what the backend sees as client */
	struct FAM(ip) backend_addr;
	__be16 source_port;
	__be16 backend_port;
	__u32 seq_expected;	    /* ack number that completes the handshake */
	__u32 out_ifindex[2];	    /* device by which each direction leaves, by enum ct_dir; 0: not confirmed */
	__u8 out_kind[2];	    /* enum device_kind of out_ifindex */
	__u16 reason;		    /* reserved: verdict reason */
	__u32 set_generation[2];    /* reserved: per local endpoint (client's, backend's) */
	__u32 entry_node;	    /* reserved: node by which the flow entered */
	__u64 origin_netns;	    /* reserved: netns cookie of the originator, 0 unknown */
	__be16 stack_port;	    /* client's port in T2: client_port, or another when T2 collided */
	__u8 mode;		    /* reserved: how replies return */
	__u8 tcp_flags[2];	    /* TCP flags seen, by enum ct_dir */
	__u8 pad[3];
};

/* fragments_vN: the datagram that fragments belong to. */
struct FAM(fragment_key) {
	struct FAM(ip) src;
	struct FAM(ip) dst;
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};

/* routes_vN: who owns an address; longest prefix wins. */
struct FAM(route_key) {
	__u32 prefixlen;
	struct FAM(ip) addr;
};
