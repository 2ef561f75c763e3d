// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/dirwatch"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

const (
	// settle is how long to wait for more after a change: installers write a file
	// in several steps.
	settle = 50 * time.Millisecond
	// lookEvery is how often to look although nothing told of a change.
	lookEvery = 30 * time.Second
)

// Installer keeps the plugin installed: a main CNI may write its configuration
// anew at any time, and has never heard of this plugin.
type Installer struct {
	options Options
	log     *zap.Logger

	mu    sync.Mutex
	state State
}

// NewInstaller returns an installer that has done nothing yet.
func NewInstaller(o Options, log *zap.Logger) *Installer {
	return &Installer{options: o, log: log, state: State{Problem: "the CNI plugin is not installed yet"}}
}

// State returns what the last look came to.
func (i *Installer) State() State {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state
}

// Proto returns the state for the API.
func (i *Installer) Proto() *agentv1.CNIState {
	s := i.State()
	return &agentv1.CNIState{Binary: s.Binary, Config: s.Config, Problem: s.Problem}
}

// Problems returns what is wrong with the installation, for people.
func (i *Installer) Problems() []string {
	s := i.State()
	var list []string
	if s.Problem != "" {
		return append(list, "new pods are not told of by the CNI plugin: "+s.Problem)
	}
	for _, note := range s.Notes {
		list = append(list, "a CNI configuration that comes before the one in use was passed over: "+note)
	}
	return list
}

// look installs and tells what changed.
func (i *Installer) look() {
	now := Install(i.options)
	i.mu.Lock()
	before := i.state
	i.state = now
	i.mu.Unlock()
	if len(now.Changed) > 0 {
		i.log.Info("CNI plugin installed", zap.Strings("written", now.Changed), zap.String("config", now.Config))
	}
	if now.Problem != before.Problem && now.Problem != "" {
		i.log.Warn("new pods are not told of by the CNI plugin", zap.String("problem", now.Problem))
	}
	if !slices.Equal(now.Notes, before.Notes) && len(now.Notes) > 0 {
		i.log.Warn("CNI configurations were passed over", zap.Strings("files", now.Notes))
	}
}

// Run installs and watches until ctx ends. What is installed stays.
func (i *Installer) Run(ctx context.Context) {
	dirs := slices.DeleteFunc([]string{i.options.BinDir, i.options.ConfDir}, func(dir string) bool { return dir == "" })
	for ctx.Err() == nil {
		turn, end := context.WithTimeout(ctx, lookEvery)
		if err := dirwatch.Follow(turn, settle, i.look, dirs...); err != nil {
			i.log.Warn("watch the node's CNI configuration", zap.Error(err))
			i.look()
			<-turn.Done() // there is the clock
		}
		end()
	}
}
