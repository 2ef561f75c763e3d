// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"testing"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

// typeLater is a type of a later release.
const typeLater = dataplanev1.ResourceType(9)

// TestForeignTypeStays connects an agent of a later release, which was given
// resources of a type that is not published here: it keeps them, and its digest
// stays right. An agent that does not announce the type is told to remove them.
func TestForeignTypeStays(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(5, "n1"))
	a := newAgent(t, "n1")
	a.types = append(a.types[:len(a.types):len(a.types)], typeLater)
	a.held[key{typeLater, "shop/cart"}] = 7
	a.held[key{typeLater, "shop/till"}] = 8
	a.held[key{typeService, "default/gone"}] = 9
	for range 2 {
		// The commit's digest is checked by the agent, on joining and below.
		a.connect(c)
		if a.held[key{typeLater, "shop/cart"}] != 7 || a.held[key{typeLater, "shop/till"}] != 8 || len(a.held) != 14 {
			t.Fatalf("holds %d resources, of the later type cart at %d and till at %d",
				len(a.held), a.held[key{typeLater, "shop/cart"}], a.held[key{typeLater, "shop/till"}])
		}
	}
	// Two at once, so that the agent may be sent a batch of its own with a digest.
	for i := range 3 {
		c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", uint64(i+1))}})
	}
	for a.held[key{typeService, "default/x"}] != 3 {
		a.batch()
	}

	a.types = allTypes
	a.connect(c)
	if _, ok := a.held[key{typeLater, "shop/cart"}]; ok || a.removals != 2 {
		t.Errorf("%d removals, want those of the type that is not announced any more", a.removals)
	}
}
