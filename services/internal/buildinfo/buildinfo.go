// SPDX-License-Identifier: Apache-2.0

// Package buildinfo tells what was built.
package buildinfo

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is what the linker, directly or through main, was told to put in.
var version string

// SetVersion sets the version, before anybody asks for it; an empty one
// changes nothing.
func SetVersion(v string) {
	if v != "" {
		version = v
	}
}

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
