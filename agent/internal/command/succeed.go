// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
)

// succeedEvery is how often it is looked whether programs of a release with
// other layouts can go.
const succeedEvery = 2 * time.Second

// succeed takes over from such programs, if there are any. It begins when the
// kernel has what the log held and the programs are attached.
func (a *agent) succeed(ctx context.Context) {
	found, blank := a.system.Past()
	if !found {
		return
	}
	a.log.Info("maps are laid out otherwise than those of the release before; its programs go on until theirs are converted",
		zap.Strings("tables_filled_anew", blank))
	tick := time.NewTicker(succeedEvery)
	defer tick.Stop()
	var told string
	for {
		switch {
		case len(blank) > 0 && !a.plane.InSync():
			a.setPast("programs of the release before go on with everything until a calculator has sent all: these tables could not be converted: " +
				strings.Join(blank, ", "))
		default:
			s, err := a.system.Succeed()
			if err != nil {
				a.log.Error("take over from the release before", zap.Error(err))
				a.setPast(fmt.Sprintf("the programs of the release before could not be succeeded: %v", err))
				break
			}
			if s.Flows > 0 || s.Sockets > 0 || s.Done {
				a.log.Info("took over from the release before", zap.Int("flows", s.Flows), zap.Int("sockets", s.Sockets), zap.Bool("done", s.Done))
			}
			if s.Done {
				a.setPast("")
				a.applier.Refresh(ctx) //nolint:errcheck // all source ports are its own now, unless ctx has ended
				return
			}
			if waiting := strings.Join(s.Waiting, ", "); waiting != told {
				told = waiting
				a.log.Warn("maps of the release before cannot be converted; its programs go on with what is in them", zap.Strings("maps", s.Waiting))
				a.setPast("programs of the release before go on with flows and sockets that cannot be converted, in " + waiting)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// setPast tells what is left of the release before; nothing if empty.
func (a *agent) setPast(problem string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.past = problem
}
