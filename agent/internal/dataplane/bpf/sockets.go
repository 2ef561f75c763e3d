// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"go.uber.org/zap"
)

// AttachSockets attaches the programs of sockets. What the kernel refuses is
// reported, and Refresh, Retry and Repair try it again: devices go on meanwhile,
// and an agent that ended instead would end again at each start.
func (p *Plane) AttachSockets() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attachSockets()
}

func (p *Plane) attachSockets() {
	before := p.unattached
	p.unattached = ""
	if err := p.kernel.AttachCgroup(); err != nil {
		p.unattached = fmt.Sprintf("programs of sockets could not be attached: %v", err)
	}
	switch {
	case p.unattached == before:
	case p.unattached == "":
		p.log.Info("programs of sockets are attached")
	default:
		p.log.Error("attach programs of sockets", zap.String("problem", p.unattached))
	}
}

// retrySockets attaches the programs of sockets if that failed before.
func (p *Plane) retrySockets() {
	if p.unattached != "" {
		p.attachSockets()
	}
}

// Unattached tells why the programs of sockets are not attached, empty if they
// are.
func (p *Plane) Unattached() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unattached
}
