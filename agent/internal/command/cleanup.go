// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/millrace-project/millrace/agent/internal/statelog"
)

// afterCleanup is what cleanup does when the kernel is clean.
type afterCleanup struct {
	removeState bool
	stay        bool
}

func (c *afterCleanup) register(flags *pflag.FlagSet) {
	flags.BoolVar(&c.removeState, "remove-state", false, "remove also the log of what calculators sent, and what the CNI plugin told, from --state-dir and --state-fallback-dir")
	flags.BoolVar(&c.stay, "stay", false, "afterwards stay until told to stop, as the pods of a DaemonSet do")
}

// forget removes what the agent kept.
func (c *afterCleanup) forget(o *options) error {
	if !c.removeState {
		return nil
	}
	if err := os.RemoveAll(o.endpointsDir()); err != nil {
		return fmt.Errorf("remove what the CNI plugin told: %w", err)
	}
	return statelog.Remove(o.stateDir, o.fallbackLog())
}

func (c *afterCleanup) wait(ctx context.Context) {
	if c.stay {
		<-ctx.Done()
	}
}
