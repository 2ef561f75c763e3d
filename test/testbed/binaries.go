// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BinDirVariable names the environment variable with a directory of built
// programs, so that they are not built once more.
const BinDirVariable = "MILLRACE_BIN"

// Binaries are the paths of the programs that run in a cluster.
type Binaries struct {
	Calculator, Agent, Ctl, Probe, CNI string
}

// Programs maps the file names of the programs to their packages, relative to the
// repository's root.
var Programs = map[string]string{
	"millrace-calculator": "services/calculator",
	"millrace-agent":      "agent",
	"millracectl":         "services/millracectl",
	"millrace-probe":      "test/cmd/millrace-probe",
	"millrace-cni":        "agent/cmd/millrace-cni",
}

func binariesIn(dir string) Binaries {
	return Binaries{
		Calculator: filepath.Join(dir, "millrace-calculator"),
		Agent:      filepath.Join(dir, "millrace-agent"),
		Ctl:        filepath.Join(dir, "millracectl"),
		Probe:      filepath.Join(dir, "millrace-probe"),
		CNI:        filepath.Join(dir, "millrace-cni"),
	}
}

func (b *Binaries) byName() map[string]*string {
	return map[string]*string{
		"millrace-calculator": &b.Calculator,
		"millrace-agent":      &b.Agent,
		"millracectl":         &b.Ctl,
		"millrace-probe":      &b.Probe,
		"millrace-cni":        &b.CNI,
	}
}

// BuildBinaries takes the programs from the directory that the environment
// names; those that are not there are built into dir.
func BuildBinaries(dir string) (Binaries, error) {
	binaries := binariesIn(dir)
	for name, path := range binaries.byName() {
		if ready := os.Getenv(BinDirVariable); ready != "" {
			absolute, err := filepath.Abs(filepath.Join(ready, name))
			if err != nil {
				return Binaries{}, err
			}
			if _, err := os.Stat(absolute); err == nil {
				*path = absolute
				continue
			}
		}
		if err := buildProgram(name, *path); err != nil {
			return Binaries{}, err
		}
	}
	return binaries, nil
}

func buildProgram(name, target string) error {
	root, err := repositoryRoot()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", target, ".")
	cmd.Dir = filepath.Join(root, Programs[name])
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, output)
	}
	return nil
}

// repositoryRoot is the directory above the working directory that holds
// go.work.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the repository: no go.work above the working directory")
		}
		dir = parent
	}
}
