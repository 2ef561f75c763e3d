// SPDX-License-Identifier: Apache-2.0

// Package layout has the Go side of every key and value in the dataplane's
// maps, and of the numbers in them.
//
// The C side is in c/include/types.h and types_family.h; a test compares the
// two by the type information in the object files, so change both together.
// What exists once per address family is a generic type over [V4] and [V6],
// the raw address, with an alias for each family. Integers are in the
// machine's order (amd64 and arm64: little endian); what the network orders,
// the C side's __be16 and __be32, is an array of bytes ([Be16], [V4], [V6])
// and so cannot be mixed up. No struct has implicit padding: the
// kernel hashes keys as bytes.
package layout
