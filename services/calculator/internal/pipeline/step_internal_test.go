// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// What was reached before the source was read in whole is known once it has
// been, although the source does not say it again.
func TestReachedBeforeTheSourceIsRead(t *testing.T) {
	publisher := publish.NewPublisher()
	p := New(publisher, NewProblems(zap.NewNop(), prometheus.NewRegistry()), zap.NewNop(), DefaultInterval)
	n := &model.Node{Name: "n1"}
	p.Apply([]source.Change{{Key: n.Key(), Object: n}}, map[string]uint64{"x": 100})
	p.Reached(map[string]uint64{"x": 150})
	position := p.step(nil)
	p.Synced()
	p.step(position)
	if got := publisher.Position()["x"]; got != 150 {
		t.Errorf("position %d, want 150", got)
	}
}
