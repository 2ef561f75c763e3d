// SPDX-License-Identifier: Apache-2.0

// Package buildinfo tells what was built.
package buildinfo

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker:
// -X github.com/millrace-project/millrace/services/internal/buildinfo.version=v1.2.3.
var version string

// Version returns the version of the binary: what the linker was told, or the
// revision of the source that the Go command found, or "devel".
func Version() string {
	if version != "" {
		return version
	}
	revision, modified := vcs()
	if revision == "" {
		return "devel"
	}
	if len(revision) > 12 {
		revision = revision[:12]
	}
	if modified {
		revision += "-dirty"
	}
	return "devel-" + revision
}

// Line returns one line for people: name, version, revision, Go version and
// platform.
func Line(name string) string {
	return fmt.Sprintf("%s %s (%s, %s/%s)", name, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func vcs() (revision string, modified bool) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", false
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			revision = setting.Value
		case "vcs.modified":
			modified = setting.Value == "true"
		}
	}
	return revision, modified
}
