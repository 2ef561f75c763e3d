// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package kubernetes names the packages that are built as test binaries, which
// tool directives cannot.
package kubernetes

import _ "k8s.io/kubernetes/test/e2e"
