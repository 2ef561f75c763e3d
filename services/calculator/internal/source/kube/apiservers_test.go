// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// TestAPIServers takes the API servers' slices through what may become of them:
// the Service default/kubernetes has a backend of each family that it ever had
// one of, and what is known anew takes the place of what was kept at once.
func TestAPIServers(t *testing.T) {
	yes, no := true, false
	slice := func(name, family string, ready *bool, addresses ...string) *model.EndpointSlice {
		s := &model.EndpointSlice{Namespace: "default", Name: name, AddressType: family, Labels: map[string]string{model.LabelServiceName: "kubernetes"}}
		for _, a := range addresses {
			s.Endpoints = append(s.Endpoints, model.Endpoint{Addresses: []string{a}, Ready: ready})
		}
		return s
	}
	upsert := func(s *model.EndpointSlice) source.Change { return source.Change{Key: s.Key(), Object: s} }
	remove := func(name string) source.Change {
		return source.Change{Key: model.Key{Kind: model.KindEndpointSlice, Namespace: "default", Name: name}}
	}
	other := slice("web", "IPv4", nil, "10.0.0.1")
	other.Labels = map[string]string{model.LabelServiceName: "web"}
	foreign := slice("kubernetes", "IPv4", nil, "10.0.0.2")
	foreign.Namespace = "shop"
	stolen := slice("k4", "IPv4", nil, "10.0.0.9")
	stolen.Labels = map[string]string{model.LabelServiceName: "web"}

	a, held := newAPIServers(), map[string]string{}
	for i, step := range []struct {
		read []source.Change
		want string
	}{
		{[]source.Change{upsert(slice("k4", "IPv4", nil))}, "default/k4:"}, // nothing is known yet
		{[]source.Change{upsert(slice("k4", "IPv4", &yes, "1", "2")), upsert(slice("k6", "IPv6", nil, "6")), upsert(other)}, "default/k4:1,2 default/k6:6 default/web:10.0.0.1"},
		{[]source.Change{upsert(slice("k4", "IPv4", &yes, "2"))}, "default/k4:2 default/k6:6 default/web:10.0.0.1"},
		{[]source.Change{upsert(slice("k4", "IPv4", nil))}, "default/k4:2 default/k6:6 default/web:10.0.0.1"},
		{[]source.Change{upsert(slice("k4", "IPv4", &no, "2", "3"))}, "default/k4:2 default/k6:6 default/web:10.0.0.1"},
		{[]source.Change{remove("k4"), remove("web")}, "default/k4:2 default/k6:6"},
		{[]source.Change{remove("k6"), upsert(foreign)}, "default/k4:2 default/k6:6 shop/kubernetes:10.0.0.2"},
		{[]source.Change{upsert(slice("new", "IPv4", nil, "5"))}, "default/k6:6 default/new:5 shop/kubernetes:10.0.0.2"},
		{[]source.Change{upsert(slice("k6", "IPv6", nil, "7"))}, "default/k6:7 default/new:5 shop/kubernetes:10.0.0.2"},
		{[]source.Change{upsert(slice("more", "IPv4", nil, "8")), remove("new")}, "default/k6:7 default/more:8 shop/kubernetes:10.0.0.2"},
		{[]source.Change{upsert(slice("k4", "IPv4", nil, "9"))}, "default/k4:9 default/k6:7 default/more:8 shop/kubernetes:10.0.0.2"},
		{[]source.Change{upsert(stolen)}, "default/k4:10.0.0.9 default/k6:7 default/more:8 shop/kubernetes:10.0.0.2"},
	} {
		for _, c := range a.change(step.read) {
			name := c.Key.Namespace + "/" + c.Key.Name
			if c.Object == nil {
				delete(held, name)
				continue
			}
			var addresses []string
			for _, e := range c.Object.(*model.EndpointSlice).Endpoints {
				addresses = append(addresses, e.Addresses...)
			}
			held[name] = strings.Join(addresses, ",")
		}
		var got []string
		for _, name := range slices.Sorted(maps.Keys(held)) {
			got = append(got, fmt.Sprintf("%s:%s", name, held[name]))
		}
		if text := strings.Join(got, " "); text != step.want {
			t.Errorf("step %d: %s, want %s", i, text, step.want)
		}
	}
}
