/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef __BITS_PER_LONG
#define __BITS_PER_LONG 64
#endif
#include <asm-generic/bitsperlong.h>
