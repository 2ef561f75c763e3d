// SPDX-License-Identifier: Apache-2.0

// Package restart starts agents again on what is in the kernel already, at
// scale: how long that takes, and what they write.
package restart
