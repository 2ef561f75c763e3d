// SPDX-License-Identifier: Apache-2.0

// Package nodecheck looks whether a node has what an agent needs to program it,
// before anything is made.
package nodecheck

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// capability is a right that the kernel asks for.
type capability struct {
	name  string
	bit   uint
	admin bool // CAP_SYS_ADMIN stands for it
	use   string
}

// needed are all capabilities of an agent.
var needed = []capability{
	{"CAP_BPF", unix.CAP_BPF, true, "maps and programs"},
	{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, false, "attaching programs and reading the node's devices"},
	{"CAP_PERFMON", unix.CAP_PERFMON, true, "programs that use pointers"},
}

// Problems tells what keeps an agent from programming its node, a line each with
// what would mend it; none if nothing does. The kernel's own shortcomings are
// told by kernel, which is asked only when the answer would not be about
// something else that is missing.
func Problems(bpfDir string, kernel func() error) []string {
	effective, err := effectiveCapabilities("/proc/self/status")
	if err != nil {
		return []string{err.Error()}
	}
	problems := missingCapabilities(effective)
	if problem := bpfFilesystem(bpfDir); problem != "" {
		problems = append(problems, problem)
	}
	if len(problems) > 0 {
		return problems
	}
	if err := kernel(); err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}

// effectiveCapabilities reads the set of this process.
func effectiveCapabilities(status string) (uint64, error) {
	file, err := os.Open(status)
	if err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was read
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("read own capabilities: %w", err)
			}
			return set, nil
		}
	}
	return 0, fmt.Errorf("read own capabilities: %w", cmp.Or(lines.Err(), fmt.Errorf("%s has no line CapEff", status)))
}

func missingCapabilities(effective uint64) (problems []string) {
	has := func(bit uint) bool { return effective&(1<<bit) != 0 }
	for _, c := range needed {
		if !has(c.bit) && !(c.admin && has(unix.CAP_SYS_ADMIN)) {
			problems = append(problems, fmt.Sprintf("the agent lacks the capability %s (for %s): add it to its container's securityContext.capabilities", c.name, c.use))
		}
	}
	return problems
}

// bpfFilesystem tells what is wrong with the file system that everything is to
// be pinned on.
func bpfFilesystem(dir string) string {
	// The directory itself is made by the agent; what is above it is there.
	place := dir
	var found unix.Statfs_t
	for {
		err := unix.Statfs(place, &found)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || place == filepath.Dir(place) {
			return fmt.Sprintf("--bpf-dir: %s: %v", place, err)
		}
		place = filepath.Dir(place)
	}
	switch {
	case found.Type != unix.BPF_FS_MAGIC:
		return fmt.Sprintf("--bpf-dir: %s is not on a BPF filesystem: mount one (mount -t bpf bpf /sys/fs/bpf)", dir)
	case found.Flags&unix.ST_RDONLY != 0:
		return fmt.Sprintf("--bpf-dir: the BPF filesystem of %s is mounted read-only: mount it writable (mount -o remount,rw /sys/fs/bpf)", dir)
	}
	return ""
}
