// SPDX-License-Identifier: Apache-2.0

// Package replicas runs two calculators on one real API server and takes them
// away from agents in every way: replaced, killed, both gone, unreachable
// without a word, stormed by a thousand agents. It counts bytes on the wire
// and compares what agents hold in the end with what was computed.
package replicas
