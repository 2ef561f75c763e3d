// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/testbed"
)

// Where the repository and the fixtures of releases are, from this directory.
const (
	repository  = "../../.."
	releasesDir = repository + "/proto/testdata/releases"
)

// ErrNoHistory tells that the repository lacks the commit of a release.
var ErrNoHistory = errors.New("the release's commit is not in this clone")

// Release is a released version.
type Release struct {
	// Version as it is tagged, "v0.1.0".
	Version string
	// Commit it was made of.
	Commit string
	// Dir has its fixtures.
	Dir string
}

// Previous returns the newest release that there are fixtures of.
func Previous() (Release, error) {
	entries, err := os.ReadDir(releasesDir)
	if err != nil {
		return Release{}, fmt.Errorf("list releases: %w", err)
	}
	if len(entries) == 0 {
		return Release{}, fmt.Errorf("there is no release in %s", releasesDir)
	}
	newest := slices.MaxFunc(entries, func(a, b os.DirEntry) int {
		return slices.Compare(numbers(a.Name()), numbers(b.Name()))
	})
	dir, err := filepath.Abs(filepath.Join(releasesDir, newest.Name()))
	if err != nil {
		return Release{}, err
	}
	commit, err := os.ReadFile(filepath.Join(dir, "commit"))
	if err != nil {
		return Release{}, fmt.Errorf("read which commit %s was made of: %w", newest.Name(), err)
	}
	return Release{Version: newest.Name(), Commit: strings.TrimSpace(string(commit)), Dir: dir}, nil
}

// numbers are those of a version, so that v0.10.0 comes after v0.9.0.
func numbers(version string) []int {
	var list []int
	for part := range strings.SplitSeq(strings.TrimPrefix(version, "v"), ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			n = -1
		}
		list = append(list, n)
	}
	return list
}

// programs are those of a release that run beside the present ones, by name of
// the file, with the module that has the program's version.
var programs = map[string]struct{ dir, module string }{
	"millrace-agent":      {"agent", "agent"},
	"millrace-calculator": {"services/calculator", "services"},
}

// Build builds the release's agent and calculator from the repository's
// history, or takes them from the cache where they were built before. All other
// programs are those of binaries.
func (r Release) Build(binaries testbed.Binaries) (testbed.Binaries, error) {
	if err := git("cat-file", "-e", r.Commit+"^{commit}").Run(); err != nil {
		return binaries, fmt.Errorf("%w: %s (%s); a shallow clone has no history, see git fetch --unshallow", ErrNoHistory, r.Version, r.Commit)
	}
	dir, err := cacheDir(r.Commit)
	if err != nil {
		return binaries, err
	}
	// Two checkouts may share the cache.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return binaries, fmt.Errorf("lock cache: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return binaries, fmt.Errorf("lock %s: %w", dir, err)
	}
	binaries.Agent = filepath.Join(dir, "millrace-agent")
	binaries.Calculator = filepath.Join(dir, "millrace-calculator")
	if exist(binaries.Agent, binaries.Calculator) {
		return binaries, nil
	}
	return binaries, r.build(dir)
}

// build builds into dir, which nobody else uses meanwhile.
func (r Release) build(dir string) error {
	source, err := os.MkdirTemp(dir, "source-")
	if err != nil {
		return fmt.Errorf("make directory for the source of %s: %w", r.Version, err)
	}
	defer os.RemoveAll(source)
	archive := filepath.Join(source, ".archive.tar")
	if output, err := git("archive", "--output", archive, r.Commit).CombinedOutput(); err != nil {
		return fmt.Errorf("take %s from the history: %w: %s", r.Version, err, bytes.TrimSpace(output))
	}
	if output, err := exec.Command("tar", "--extract", "--directory", source, "--file", archive).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", r.Version, err, bytes.TrimSpace(output))
	}
	for name, program := range programs {
		version := fmt.Sprintf("-s -w -X github.com/millrace-project/millrace/%s/internal/buildinfo.version=%s", program.module, r.Version)
		target := filepath.Join(dir, name)
		command := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", version, "-o", target+".new", "./"+program.dir)
		command.Dir = source
		// The workspace is that of the archive, which go finds by itself.
		command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=")
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s of %s: %w\n%s", name, r.Version, err, output)
		}
		if err := os.Rename(target+".new", target); err != nil {
			return fmt.Errorf("build %s of %s: %w", name, r.Version, err)
		}
	}
	return nil
}

// git is a git command on this repository, also if another user owns it.
func git(args ...string) *exec.Cmd {
	return exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", repository}, args...)...)
}

// cacheDir is where programs of a commit are kept.
func cacheDir(commit string) (string, error) {
	cache := os.Getenv("MILLRACE_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find cache: %w", err)
		}
		cache = filepath.Join(base, "millrace")
	}
	dir := filepath.Join(cache, "releases", commit)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	return dir, nil
}

func exist(paths ...string) bool {
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}
