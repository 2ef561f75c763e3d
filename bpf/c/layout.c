/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every layout and number, for the test that compares them with package
 * layout. Holds no program and is never loaded.
 */
#include "include/helpers.h"
#include "include/types.h"

#define USE(kind, name) kind name use_##name;
#define USE_FAMILY(name) USE(struct, name##_v4) USE(struct, name##_v6)

USE_FAMILY(frontend_key)
USE_FAMILY(backend)
USE_FAMILY(affinity_key)
USE_FAMILY(affinity)
USE_FAMILY(route_key)
USE_FAMILY(ct_key)
USE_FAMILY(ct_entry)
USE_FAMILY(fragment_key)
USE_FAMILY(sock_peer)
USE_FAMILY(sock_state)
USE_FAMILY(connected)
USE(struct, frontend)
USE(struct, route)
USE(struct, fragment)
USE(struct, config)
USE(struct, id_key)
USE(struct, counter_key)
USE(struct, counter)
USE(struct, ct_pressure)
USE(struct, ct_move_request)

USE(enum, frontend_flags)
USE(enum, backend_flags)
USE(enum, affinity_clock)
USE(enum, route_flags)
USE(enum, config_flags)
USE(enum, ct_kind)
USE(enum, ct_dir)
USE(enum, ct_state)
USE(enum, ct_flags)
USE(enum, ct_move_table)
USE(enum, ct_move_step)
USE(enum, device_kind)
USE(enum, sock_peer_used)
USE(enum, reason)
