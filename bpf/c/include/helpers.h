/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every program includes before anything else. */
#ifndef MILLRACE_HELPERS_H
#define MILLRACE_HELPERS_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
/* linux/icmp.h wants linux/if.h for one length, and that would want a libc. */
#define _LINUX_IF_H
#define IFNAMSIZ 16
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

#define NSEC_PER_SEC 1000000000ULL

/* Left to whatever comes next on the hook, and then to the stack. */
#define PASS TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT

/* Errno values of map updates. */
#define EEXIST 17

#endif
