/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Making flows: what does not depend on the family. */
#ifndef MILLRACE_FLOW_H
#define MILLRACE_FLOW_H

#include "conntrack.h"

/* How many ports are tried for a tuple that is taken. */
#define PORT_PROBES 32
/*
 * From one to the next: neighbours of a taken port tend to be taken too, so
 * that trying them fails long before the range is full. Prime, so that no
 * range in use repeats itself within the probes.
 */
#define PORT_STRIDE 7919
/* Stands for no candidate: the port as it is. */
#define PORT_AS_IT_IS (-1)

enum flow_made {
	FLOW_NONE,    /* not a flow of these programs: pass */
	FLOW_MADE,    /* the tuple has a record now */
	FLOW_REFUSED, /* no backend: answer in its place */
	FLOW_DROPPED, /* and counted */
};

/* The i-th candidate of the port range, from a start that a hash decides. */
static __always_inline __be16 port_candidate(const struct config *cfg, __u32 start, __u32 i)
{
	__u32 n = (__u32)cfg->snat_port_last - cfg->snat_port_first + 1;

	return bpf_htons(cfg->snat_port_first + (start + i * PORT_STRIDE) % n);
}

/*
 * How long a closed flow keeps its source port from others: until its last
 * acknowledgement has surely passed, or, after a reset, until who did not mean
 * it has spoken.
 */
#define CLOSED_REST (NSEC_PER_SEC / 4)
#define RESET_REST (2 * NSEC_PER_SEC)

static __always_inline bool has_port_range(const struct config *cfg)
{
	return cfg->snat_port_first && cfg->snat_port_last >= cfg->snat_port_first;
}

#endif
