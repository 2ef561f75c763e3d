// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"

	"go.uber.org/zap"
	"k8s.io/client-go/rest"

	"github.com/millrace-project/millrace/services/calculator/internal/events"
)

// recordEvents prepares telling problems as Events, if there is an API server.
func (c *calculator) recordEvents(config *rest.Config, log *zap.Logger) (err error) {
	if config == nil {
		return nil
	}
	c.events, err = events.New(events.Options{Config: config, Instance: c.sync.CalculatorID,
		Problems: c.problems.List, Nodes: c.sync.Reported, Log: log, Registry: c.registry})
	return err
}

// tellEvents tells problems once the source has been read in whole: before, what
// an object lacks may only not have been read.
func (c *calculator) tellEvents(ctx context.Context) {
	if c.publisher.AwaitSynced(ctx) == nil {
		c.events.Run(ctx)
	}
}
