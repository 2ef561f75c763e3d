// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	envPrivilegesPath   = "MILLRACE_BPF_TEST_PRIVILEGES_PATH"
	envPrivilegesCgroup = "MILLRACE_BPF_TEST_PRIVILEGES_CGROUP"
	nobody              = 65534
)

// The agent's capabilities are enough for everything, from creation to removal.
func TestPrivileges(t *testing.T) {
	needKernel(t)
	dir, cgroup := filepath.Join(bpffs, "privileges"), testCgroup(t)
	veth(t, "priv")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	for path, owner := range map[string]int{dir: nobody, bpffs: 0} {
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(bpffs, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), envPrivilegesPath+"="+filepath.Join(dir, "pins"), envPrivilegesCgroup+"="+cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// useEverything is what TestPrivileges runs with few capabilities.
func useEverything(path, cgroup string) error {
	if _, err := ebpf.NewProgramFromID(1); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("open a program by id: %v: the capabilities are not those of the agent", err)
	}
	for _, f := range Probe() {
		if f.Required && !f.Present() {
			return errors.New(f.String())
		}
	}
	device, err := net.InterfaceByName("priv")
	if err != nil {
		return err
	}
	for range 2 {
		for _, clsact := range []bool{false, true} {
			d, err := Open(testSizes(Options{PinPath: path, ForceClsact: clsact}))
			if err != nil {
				return err
			}
			_, err1 := d.AttachCgroup(cgroup)
			_, err2 := d.AttachDevice(device.Index, Pod)
			_, err3 := d.Attachments()
			_, err4 := d.ProgramInfos()
			g, err5 := d.PrepareGrowth(map[string]uint32{"backends_v4": 2 * d.TableSizes()["backends_v4"]})
			if err5 == nil {
				err5 = g.Exchange()
			}
			if err := errors.Join(err1, err2, err3, err4, err5, d.Quiesce(), d.Close()); err != nil {
				return err
			}
		}
	}
	return RemovePins(path)
}
