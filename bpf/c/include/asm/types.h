/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The UAPI headers include <asm/...> from a folder of the build machine's own
 * architecture; BPF has one layout on all, so that these stand in their place. */
#include <asm-generic/int-ll64.h>
