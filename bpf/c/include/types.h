/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Layouts of all map keys and values, and the numbers in them. */
#ifndef MILLRACE_TYPES_H
#define MILLRACE_TYPES_H

#define FAM_(x, f) x##_v##f
#define FAM__(x, f) FAM_(x, f)
#define FAM(x) FAM__(x, FAMILY)

#define FAMILY 4
#define IP_WORDS 1
#include "types_family.h"
#undef FAMILY
#undef IP_WORDS
#define FAMILY 6
#define IP_WORDS 4
#include "types_family.h"
#undef FAMILY
#undef IP_WORDS

/* Value of frontends_vN, family independent. */
struct frontend {
	__u32 service_id;	 /* number of the service port, never 0 */
	__u32 first_backend;	 /* index into backends_vN */
	__u32 backend_count;	 /* usable backends from first_backend on; 0: refuse */
	__u32 flags;		 /* enum frontend_flags */
	__u32 affinity_timeout;	 /* seconds for which a client keeps its backend, 0 none */
	__u32 reserved;
};

enum frontend_flags {
	FRONTEND_CLUSTER_IP = 1 << 0,
	FRONTEND_NODE_PORT = 1 << 1,
	FRONTEND_EXTERNAL_IP = 1 << 2,
	FRONTEND_LOAD_BALANCER = 1 << 3,
	/* A loopback address: only for sockets of the host's own namespace. */
	FRONTEND_HOST_ONLY = 1 << 4,
};

/*
 * Time in affinity_vN is told in ticks: coarse monotonic ns, shifted right. One
 * is about 17 ms, and they start over every two years; an entry of that age was
 * removed long before, and would but lead to a backend that is usable.
 */
enum affinity_clock {
	AFFINITY_TICK_SHIFT = 24,
};

enum backend_flags {
	BACKEND_LOCAL = 1 << 0,	       /* on this node, pod or host network */
	BACKEND_HOST_NETWORK = 1 << 1, /* answers on an address of a node */
};

enum ct_kind {
	CT_RECORD = 1,
	CT_ALIAS_FRONTEND = 2, /* stands under T1 */
	CT_ALIAS_BACKEND = 3,  /* stands under T2, only with source translation */
};

enum ct_dir {
	CT_ORIG = 0,  /* from the client */
	CT_REPLY = 1, /* to the client */
};

enum ct_state {
	CT_NEW = 0,	    /* originator was seen */
	CT_REPLIED = 1,	    /* the other end answered */
	CT_ESTABLISHED = 2, /* originator answered that: in the established map */
	CT_CLOSING = 3,	    /* FIN from either end */
	CT_CLOSED = 4,	    /* FINs from both ends, or RST */
};

enum ct_flags {
	CT_ORIG_IS_LO = 1 << 0,	   /* in this entry's key, the client's side is lo */
	CT_DNAT = 1 << 1,	   /* frontend and backend differ */
	CT_SNAT = 1 << 2,	   /* source and client differ */
	CT_CLUSTER = 1 << 3,	   /* both ends are pods or nodes of the stream: may take the fast path */
	CT_HAIRPIN = 1 << 4,	   /* the backend is the client */
	CT_HOST_CLIENT = 1 << 5,   /* opened by the host itself, translated where it leaves and comes back */
};

/* Asks for entries to be moved between the generations of a conntrack map. */
struct ct_move_request {
	__u8 family; /* 4 or 6 */
	__u8 table;  /* enum ct_move_table */
	__u8 step;   /* enum ct_move_step */
	__u8 keys;   /* how many follow */
};

enum ct_move_table {
	CT_MOVE_ESTABLISHED = 0,
	CT_MOVE_EMBRYONIC = 1,
};

enum ct_move_step {
	CT_MOVE_COPY = 0,   /* copy what the keys name */
	CT_MOVE_SETTLE = 1, /* merge, and remove the old */
};

/* Value of ct_pressure. */
struct ct_pressure {
	__u64 until;	/* coarse monotonic ns until which the map counts as full */
	__u64 failures; /* flows, or attempts of theirs, that found no room */
};

/* Value of fragments_vN: the ports, which only the first fragment carries. */
struct fragment {
	__be16 src_port;
	__be16 dst_port;
};

/* Value of routes_vN. */
struct route {
	__u32 flags;   /* enum route_flags */
	__u32 ifindex; /* device of a local pod, else 0 */
};

enum route_flags {
	ROUTE_POD = 1 << 0,
	ROUTE_NODE = 1 << 1,
	ROUTE_LOCAL = 1 << 2, /* on this node */
};

enum device_kind {
	DEVICE_NONE = 0,
	DEVICE_POD = 1,
	DEVICE_UPLINK = 2,
};

/* The one element of config. Written by the agent, read on every packet. */
struct config {
	__be32 node_addr_v4;	/* source of translated connections; 0: none */
	__be32 node_addr_v6[4]; /* all zero: none */
	__u16 snat_port_first;	/* inclusive, host order */
	__u16 snat_port_last;
	__u64 host_netns_cookie;
	__u32 flags; /* enum config_flags */
	__u32 tcp_syn_timeout;	       /* seconds, all of them */
	__u32 tcp_established_timeout;
	__u32 tcp_close_timeout;
	__u32 udp_timeout;	       /* before the other end answered */
	__u32 udp_stream_timeout;      /* after */
	__u64 reserved[2];
};

enum config_flags {
	/* Redirect established flows of the cluster past the host's stack. */
	CONFIG_FAST_PATH = 1 << 0,
	/* This dataplane's programs answer; cleared, every program passes. */
	CONFIG_ENABLED = 1 << 1,
	/*
	 * Programs of an earlier generation run before these at every hook, and what
	 * comes here may be their work: a packet or a call that goes to a backend
	 * then does not say that the client means the backend itself.
	 */
	CONFIG_BEHIND = 1 << 2,
};

/* ids: numbers the agent gave out, by natural key; never reused while named. */
struct id_key {
	__u8 digest[16]; /* first half of SHA-256 of kind and natural key */
};

/* counters: per device and reason. */
struct counter_key {
	__u32 ifindex; /* 0: a socket program */
	__u16 reason;  /* enum reason */
	__u16 pad;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* Why a packet or a call was dropped or answered in the backend's place. */
enum reason {
	REASON_NONE = 0,
	REASON_NO_BACKEND = 1,	     /* refused: the service has no backend */
	REASON_NO_SNAT_PORT = 2,     /* dropped: every source port tried is taken */
	REASON_CT_FULL = 3,	     /* dropped: no room for a record of a translated flow */
	REASON_MALFORMED = 4,	     /* dropped: shorter than its headers say */
	REASON_BACKEND_MISSING = 5,  /* dropped: the backends array ends before the frontend says */
	REASON_FIB = 6,		     /* passed to the stack: no neighbour or route for the fast path */
	REASON_FRAGMENT = 7,	     /* dropped: a later fragment whose first one is unknown */
	REASON_REWRITE = 8,	     /* dropped: a header could not be written */
	REASON_UNSUPPORTED = 9,	     /* dropped: headers that the programs do not handle, to a service */
	REASON_COUNT,
};

/* Socket storage: which services a socket talks to. */
#define SOCK_PEERS 16 /* a power of two */
enum sock_peer_used {
	SOCK_PEER_FREE = 0,
	SOCK_PEER_CURRENT = 1, /* what is sent to the frontend goes to this backend */
	SOCK_PEER_PAST = 2,    /* the service lost this backend; answers may be under way */
};
struct sock_state_v4 {
	struct sock_peer_v4 peers[SOCK_PEERS];
};
struct sock_state_v6 {
	struct sock_peer_v6 peers[SOCK_PEERS];
};

#endif
