// SPDX-License-Identifier: Apache-2.0

package bpf

// Sizes up to which tables grow unless told otherwise: four to sixteen times
// what they begin with. A full array of IPv6 backends then takes 80 MiB.
const (
	LimitFrontends = 1 << 20
	LimitBackends  = 1 << 22
	LimitRoutes    = 1 << 20
	LimitIDs       = 1 << 20
)
