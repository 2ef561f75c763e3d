// SPDX-License-Identifier: Apache-2.0

// Package buildinfo tells what was built.
package buildinfo

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker:
// -X github.com/millrace-project/millrace/agent/internal/buildinfo.version=v1.2.3.
var version string

// Version returns the version of the binary: what the linker was told, or the
// revision of the source that the Go command found, or "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	revision, suffix := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			suffix = "-dirty"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "devel-" + revision + suffix
}

// Line returns one line for people: name, version, Go version and platform.
func Line(name string) string {
	return fmt.Sprintf("%s %s (%s, %s/%s)", name, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
