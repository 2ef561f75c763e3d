/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The agent's requests to the program that moves entries between generations.
 * It is run by BPF_PROG_TEST_RUN; the request is the packet.
 */
#ifndef MILLRACE_CONNTRACK_MOVE_H
#define MILLRACE_CONNTRACK_MOVE_H

#include "packet.h"

/* Keys of one run: as many of the larger kind as a test run's packet holds. */
#define CT_MOVE_BATCH 64
/* Where the request is, behind what the kernel takes for a link header; then the keys. */
#define CT_MOVE_REQUEST 16
#define CT_MOVE_KEYS (CT_MOVE_REQUEST + sizeof(struct ct_move_request))

/*
 * What became of an entry. The values add up to the answer of a run, so that it is
 * a sum of numbers unknown to the verifier: counting by comparisons, it would walk
 * every combination of counts, which older kernels' verifiers do not end.
 */
enum ct_moved {
	CT_MOVE_GONE = 0, /* ended, or nothing live */
	CT_MOVE_DONE = 1,
	CT_MOVE_STAYS = 1 << 16, /* no room for it yet */
};

#define FAMILY 4
#include "conntrack_move_family.h"
#undef FAMILY

#define FAMILY 6
#include "conntrack_move_family.h"
#undef FAMILY

#endif
