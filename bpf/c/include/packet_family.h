/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet path of one family, in order of use. */
#include "address_family.h"
#include "parse_family.h"
#include "conntrack_family.h"
#include "affinity_family.h"
#include "service_family.h"
#include "flow_family.h"
#include "nat_family.h"
#include "icmp_error_family.h"
#include "refuse_family.h"
#include "fastpath_family.h"
#include "ingress_family.h"
#include "egress_family.h"
