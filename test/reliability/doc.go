// SPDX-License-Identifier: Apache-2.0

// Package reliability says how its sub-packages are sized: each breaks running
// programs in one way while traffic flows, on the real binaries and kernel, and
// counts what was lost. Every test runs at a size that fits CI, and at its full
// size when MILLRACE_SOAK=1 (`make soak`).
package reliability

import "os"

// Soak tells that tests are to run at their full size.
func Soak() bool { return os.Getenv("MILLRACE_SOAK") == "1" }
