// SPDX-License-Identifier: Apache-2.0

// Command bpfmount mounts the BPF filesystem at a directory unless one is
// mounted there. The agent's init container runs it, so that the agent itself
// needs no right to mount. Where it cannot, it says so and lets the agent begin
// all the same, which tells it to everybody who asks and waits until it is mended.
package main

import (
	"fmt"
	"os"
	"syscall"
)

// bpfMagic is the type of the BPF filesystem in statfs(2).
const bpfMagic = 0xcafe4a11

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "bpfmount: allowed is one argument, the directory to mount at")
		os.Exit(2)
	}
	if err := mount(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "bpfmount:", err)
	}
}

func mount(dir string) error {
	mounted, err := isMounted(dir)
	if err != nil || mounted {
		return err
	}
	if err := syscall.Mount("bpf", dir, "bpf", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mounting the BPF filesystem at %s: %w", dir, err)
	}
	return nil
}

func isMounted(dir string) (bool, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return false, fmt.Errorf("looking at %s: %w", dir, err)
	}
	return uint32(fs.Type) == bpfMagic, nil
}
