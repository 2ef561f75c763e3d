// SPDX-License-Identifier: Apache-2.0

// Package bpf has the dataplane's BPF programs and what user space needs to
// run them: it creates or adopts the pinned maps, loads the programs, attaches
// them to cgroups and devices, and probes what the kernel can do.
//
// # Pins
//
// Everything outlives the process under [Options].PinPath, a directory on a
// BPF filesystem:
//
//	maps/NAME                  every map; inner maps as NAME-current, NAME-draining
//	links/cgroup-PROGRAM       attachments to the cgroup
//	links/tcx-IFINDEX-HOOK     attachments to devices
//	links/clsact-IFINDEX-HOOK  the same where the kernel has no tcx; a program
//	programs/NAME              the programs as last loaded
//
// Nothing is ever looked up by id, so CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON
// suffice.
//
// # Writing services
//
// Programs run while maps are written. A frontend is replaced by one atomic
// hash update, but an array element is copied byte by byte, and a program may
// read it half way. The rule that follows: an element of backends_vN that a
// frontend reaches is never written. See [WriteBackends].
package bpf
