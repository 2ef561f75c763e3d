// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/kernels/guest"
	"github.com/millrace-project/millrace/test/kernels/image"
	"github.com/millrace-project/millrace/test/testbed"
)

const module = "github.com/millrace-project/millrace/"

// run is a package whose tests are run in a guest.
type run struct {
	pkg  string // below the module's path
	only string // pattern of tests; empty: all
	skip string // pattern of tests that are not for guests
}

// name of the package, also the file name of its tests.
func (r run) name() string { return strings.ReplaceAll(r.pkg, "/", "_") }

// kernel is a kernel with what is run on it.
type kernel struct {
	series  string
	modules []string
	runs    []run
	// refused: Millrace must not run on it.
	refused bool
}

// Modules that the tests need and that Debian's kernels do not have built in.
var (
	baseModules = []string{
		"crc32c_generic", "veth", "bridge", "vxlan", "dummy", "8021q", "bonding", "sctp", "xfrm_user", "tcp_diag", "udp_diag",
		"sch_ingress", "cls_bpf",
		"nf_tables", "nf_conntrack", "nf_nat", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_reject_inet",
	}
	everything = []run{
		{pkg: "bpf/layout"},
		{pkg: "bpf", skip: orderOfCalls},
		{pkg: "bpf/narrative"},
		{pkg: "agent/internal/interfaces"},
		{pkg: "test/e2e", only: "^(TestPreflight|TestAgentRestart)$"},
	}
	devices = run{pkg: "test/e2e", only: "^(TestPreflight|TestAgentRestart|TestDevices)$"}
)

// orderOfCalls are tests of package bpf that load everything again and again, in
// all, for a quarter of an hour in a guest. What they are about is the order in
// which the loader does things, which is the same on every kernel; what it
// does is in the tests that are left, where tables and a map of flows grow, and
// in the narratives.
const orderOfCalls = "CutShort|^TestSuccession$|^TestGrowth|^TestTablesGrowAtStart$|^TestPrograms|^TestOtherObjects|^TestMoveMerges|^TestMoveLeaves|^TestTrial$"

// refusal is what is run where Millrace must refuse to run.
var refusal = []run{{pkg: "test/e2e", only: "^(TestPreflight|TestUnsuitableKernel|TestWithoutCapabilities)$"}}

var kernels = []kernel{
	{series: "5.10", modules: baseModules, runs: refusal, refused: true},
	{series: "6.1", modules: baseModules, runs: everything},
	{series: "6.12", modules: append([]string{"netkit"}, baseModules...), runs: append(everything[:len(everything)-1:len(everything)-1], devices)},
}

// chosen is the kernel with what MILLRACE_KERNELS_RUN asks for in place of its
// own runs, for work on one test: PACKAGE, PACKAGE:PATTERN, or preflight alone.
func (k kernel) chosen() kernel {
	if only := os.Getenv("MILLRACE_KERNELS_RUN"); only == preflightRun {
		k.runs = nil
	} else if only != "" {
		pkg, pattern, _ := strings.Cut(only, ":")
		k.runs = []run{{pkg: pkg, only: pattern}}
	}
	return k
}

// compile builds what guests run: tests, the first process, Millrace's
// programs. It returns their directory.
func compile(t *testing.T) string {
	t.Helper()
	dir := programDir(t)
	for _, k := range kernels {
		for _, r := range k.chosen().runs {
			target := filepath.Join(dir, r.name()+".test")
			if _, err := os.Stat(target); err == nil {
				continue
			}
			goTool(t, "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", target, module+r.pkg)
		}
	}
	goTool(t, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "init"), module+"test/cmd/millrace-guest")
	return dir
}

// programDir makes a directory with Millrace's programs.
func programDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, pkg := range testbed.Programs {
		if ready := os.Getenv("MILLRACE_BIN"); ready != "" {
			if err := os.Symlink(filepath.Join(ready, name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		goTool(t, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), module+pkg)
	}
	return dir
}

func goTool(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// preflightRun is the name of the run of preflight, the only one that is no
// package of tests.
const preflightRun = "preflight"

// Places in the guest.
const (
	guestTests = "/tests"
	guestBin   = "/bin"
)

// image writes the initial filesystem.
func (k kernel) image(target, kernelDir, programDir string) error {
	modules, err := image.Modules(filepath.Join(kernelDir, "modules"), k.modules)
	if err != nil {
		return err
	}
	out, err := os.Create(target)
	if err != nil {
		return err
	}
	defer out.Close()
	a := image.NewArchive(out)
	a.File("/init", 0o755, filepath.Join(programDir, "init"))
	for name := range testbed.Programs {
		a.File(guestBin+"/"+name, 0o755, filepath.Join(programDir, name))
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		return fmt.Errorf("the guests' packet filter: %w", err)
	}
	a.Program(guestBin+"/nft", nft)
	var plan guest.Plan
	for _, m := range modules {
		a.Bytes(guest.ModuleDir+"/"+m.Name, 0o644, m.Content)
		plan.Modules = append(plan.Modules, m.Name)
	}
	plan.Runs = append(plan.Runs, guest.Run{
		Name: preflightRun, Path: guestBin + "/millrace-agent", Args: []string{"preflight", "-o", "json"}, Dir: "/tmp", Timeout: limit / 2,
	})
	for _, r := range k.runs {
		// Tests are run where their data is, as the go command does.
		dir := guestTests + "/" + r.name()
		a.Dir(dir)
		binary := guestTests + "/" + r.name() + ".test"
		a.File(binary, 0o755, filepath.Join(programDir, r.name()+".test"))
		for _, data := range []string{"testdata", "releases"} {
			if err := a.Tree(dir+"/"+data, filepath.Join("..", "..", r.pkg, data)); err != nil {
				return err
			}
		}
		args := []string{"-test.v=test2json", "-test.timeout=" + limit.String()}
		if r.only != "" {
			args = append(args, "-test.run="+r.only)
		}
		if r.skip != "" {
			args = append(args, "-test.skip="+r.skip)
		}
		plan.Runs = append(plan.Runs, guest.Run{
			Name: r.pkg, Path: binary, Args: args, Dir: dir, Timeout: limit - time.Minute,
			Env: []string{"MILLRACE_BIN=" + guestBin},
		})
	}
	text, err := planText(plan)
	if err != nil {
		return err
	}
	a.Bytes(guest.PlanPath, 0o644, text)
	return a.Close()
}
