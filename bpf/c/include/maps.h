/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map of the dataplane, once. The loader creates and pins them by name
 * and gives the same ones to every object; sizes here are the defaults, and
 * the agent may raise them before creation.
 */
#ifndef MILLRACE_MAPS_H
#define MILLRACE_MAPS_H

#include "types.h"

#define MAX_FRONTENDS (256 * 1024)
/*
 * Ranges of backends have powers of two as capacities, and a change writes a
 * new one beside the old: 30,000 services with 10 backends take 480,000
 * elements, and as many again when all change at once.
 */
#define MAX_BACKENDS (1024 * 1024)
#define MAX_EMBRYONIC (64 * 1024)
#define MAX_ESTABLISHED (512 * 1024)
#define MAX_ROUTES (64 * 1024)
#define MAX_IDS (256 * 1024)
#define MAX_COUNTERS (16 * 1024)
#define CONNECTED_SLOTS (64 * 1024) /* a power of two */
#define MAX_SPILLED (128 * 1024)
#define MAX_FRAGMENTS (8 * 1024)
#define MAX_AFFINITY (64 * 1024)

/* Slots of embryonic_vN and established_vN. */
#define CT_CURRENT 0
#define CT_DRAINING 1 /* empty but while a map is being replaced by a larger */
#define CT_SLOTS 2

/* Inner maps are declared by sizes: clang does not follow the types there. */
#define FAMILY_MAPS(f)                                                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, MAX_FRONTENDS);                                                                    \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__type(key, struct frontend_key_v##f);                                                                 \
		__type(value, struct frontend);                                                                        \
	} frontends_v##f SEC(".maps");                                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                                      \
		__uint(max_entries, MAX_BACKENDS);                                                                     \
		__uint(map_flags, BPF_F_MMAPABLE);                                                                     \
		__type(key, __u32);                                                                                    \
		__type(value, struct backend_v##f);                                                                    \
	} backends_v##f SEC(".maps");                                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                                                   \
		__uint(max_entries, MAX_ROUTES);                                                                       \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__type(key, struct route_key_v##f);                                                                    \
		__type(value, struct route);                                                                           \
	} routes_v##f SEC(".maps");                                                                                    \
	struct embryonic_inner_v##f {                                                                                  \
		__uint(type, BPF_MAP_TYPE_LRU_HASH);                                                                   \
		__uint(max_entries, MAX_EMBRYONIC);                                                                    \
		__uint(key_size, sizeof(struct ct_key_v##f));								\
		__uint(value_size, sizeof(struct ct_entry_v##f));							\
	};                                                                                                             \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                                              \
		__uint(max_entries, CT_SLOTS);                                                                         \
		__type(key, __u32);                                                                                    \
		__array(values, struct embryonic_inner_v##f);                                                          \
	} embryonic_v##f SEC(".maps");                                                                                 \
	struct established_inner_v##f {                                                                                \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, MAX_ESTABLISHED);                                                                  \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__uint(key_size, sizeof(struct ct_key_v##f));								\
		__uint(value_size, sizeof(struct ct_entry_v##f));							\
	};                                                                                                             \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                                              \
		__uint(max_entries, CT_SLOTS);                                                                         \
		__type(key, __u32);                                                                                    \
		__array(values, struct established_inner_v##f);                                                        \
	} established_v##f SEC(".maps");                                                                               \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_LRU_HASH);                                                                   \
		__uint(max_entries, MAX_FRAGMENTS);                                                                    \
		__type(key, struct fragment_key_v##f);                                                                 \
		__type(value, struct fragment);                                                                        \
	} fragments_v##f SEC(".maps");                                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_LRU_HASH);                                                                   \
		__uint(max_entries, MAX_AFFINITY);                                                                     \
		__type(key, struct affinity_key_v##f);                                                                 \
		__type(value, struct affinity_v##f);                                                                   \
	} affinity_v##f SEC(".maps");                                                                                  \
	struct {													\
		__uint(type, BPF_MAP_TYPE_ARRAY);									\
		__uint(max_entries, CONNECTED_SLOTS);									\
		__type(key, __u32); /* low bits of a socket cookie */							\
		__type(value, struct connected_v##f);									\
	} connected_v##f SEC(".maps");											\
	struct {													\
		__uint(type, BPF_MAP_TYPE_HASH);									\
		__uint(max_entries, MAX_SPILLED);									\
		__uint(map_flags, BPF_F_NO_PREALLOC);									\
		__type(key, __u64); /* socket cookie */								\
		__type(value, struct sock_peer_v##f);									\
	} spilled_v##f SEC(".maps");											\
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE);                                                                 \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__type(key, __u32);                                                                                    \
		__type(value, struct sock_state_v##f);                                                                 \
	} sockets_v##f SEC(".maps");

FAMILY_MAPS(4)
FAMILY_MAPS(6)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_IDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct id_key);
	__type(value, __u32);
} ids SEC(".maps");

/* How pressed for room the established maps are, by family: v4, v6. Written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct ct_pressure);
} ct_pressure SEC(".maps");

/* Not 0: the established map of the family is as large as it may become. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} ct_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_COUNTERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct counter_key);
	__type(value, struct counter);
} counters SEC(".maps");

#endif
