// SPDX-License-Identifier: Apache-2.0

// Command millrace-cni is a chained CNI plugin that tells the node's agent of
// each pod's interface, and changes nothing itself.
package main

import (
	"os"

	"github.com/millrace-project/millrace/agent/internal/buildinfo"
	"github.com/millrace-project/millrace/agent/internal/cniplugin"
)

func main() { os.Exit(cniplugin.Main(buildinfo.Version())) }
