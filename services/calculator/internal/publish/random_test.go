// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

// Whatever is published, an agent that follows and one that resumes from an old
// state hold the same, which is what a model of
// a few lines says they should.
func TestRandomBatches(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { randomBatches(t, seed) })
	}
}

func randomBatches(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	c := newCalculator(t, publish.Options{})
	member := []publish.Audience{"node/n1", "zone/a", "all"}
	first := cluster(3, "n1")
	first.Nodes[0].Audiences = member
	c.publish(first)
	follower, resumer := newAgent(t, "n1"), newAgent(t, "n1")
	resumer.connect(c)
	follower.connect(c)

	// A name belongs to one audience at a time; the node is in two of four.
	audiences := []publish.Audience{"all", "node/n1", "zone/a", "zone/b"}
	owner := map[string]publish.Audience{}
	versions := map[string]uint64{}
	for round := range 40 {
		batch := publish.Batch{}
		for range random.IntN(8) {
			k := fmt.Sprint("default/r", random.IntN(30))
			old, exists := owner[k]
			switch random.IntN(3) {
			case 0:
				if exists {
					batch.Changes = append(batch.Changes, removal(old, typeService, k))
					delete(owner, k)
				}
			default:
				audience := audiences[random.IntN(len(audiences))]
				if exists && audience != old {
					batch.Changes = append(batch.Changes, removal(old, typeService, k))
				}
				if random.IntN(4) > 0 {
					versions[k]++
				}
				batch.Changes = append(batch.Changes, upsert(audience, typeService, k, versions[k]+1))
				owner[k] = audience
			}
		}
		if random.IntN(5) == 0 {
			member[1] = audiences[2+random.IntN(2)]
			batch.Nodes = []publish.Node{{Name: "n1", Audiences: member}}
		}
		// A marker that every batch changes, so that the follower is always
		// sent something and can wait for it.
		batch.Changes = append(batch.Changes, upsert("all", typeNode, "marker", uint64(round+1)))
		c.publish(batch)

		want := map[key]uint64{{typeNodeConfig, "n1"}: 1, {typeNode, "n1"}: 1, {typeNode, "marker"}: uint64(round + 1)}
		for i := range 3 {
			want[key{typeService, fmt.Sprint("default/service-", i)}] = 1
			want[key{typeBackendSlice, fmt.Sprint("default/service-", i, "/0")}] = 1
		}
		for k, audience := range owner {
			if audience == "all" || audience == "node/n1" || audience == member[1] {
				want[key{typeService, k}] = versions[k] + 1
			}
		}
		follower.batch()
		if !maps.Equal(follower.held, want) {
			t.Fatalf("round %d: the follower holds %v, want %v", round, follower.held, want)
		}
		if random.IntN(6) == 0 {
			resumer.connect(c)
			if !maps.Equal(resumer.held, want) {
				t.Fatalf("round %d: the resumer holds %v, want %v", round, resumer.held, want)
			}
			follower.connect(c) // the node's newest stream is the follower's again
		}
	}
}
