// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/millrace-project/millrace/calc/model"
)

func TestTrimLabels(t *testing.T) {
	t.Parallel()
	got := model.TrimLabels(map[string]string{"app": "x", model.LabelHeadless: "", model.LabelServiceName: "s"})
	if want := map[string]string{model.LabelHeadless: "", model.LabelServiceName: "s"}; !maps.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
	if got := model.TrimLabels(map[string]string{"app": "x"}); got != nil {
		t.Errorf("kept %v of nothing", got)
	}
}

// TestKinds: what is handed in under a kind is found under it again.
func TestKinds(t *testing.T) {
	t.Parallel()
	objects := []model.Object{&model.Service{}, &model.EndpointSlice{}, &model.Node{}, &model.Pod{},
		&model.Namespace{}, &model.Settings{}, &model.ConfigMap{}}
	var kinds []model.Kind
	for _, object := range objects {
		kinds = append(kinds, object.Key().Kind)
	}
	known := model.Kinds()
	slices.Sort(kinds)
	slices.Sort(known)
	if !slices.Equal(kinds, known) {
		t.Errorf("objects have kinds %v, Kinds gives %v", kinds, known)
	}
}

func TestKeyString(t *testing.T) {
	t.Parallel()
	if got := (&model.Pod{Namespace: "ns", Name: "p"}).Key().String(); got != "Pod ns/p" {
		t.Errorf("got %q", got)
	}
	if got := (&model.Node{Name: "n"}).Key().String(); got != "Node n" {
		t.Errorf("got %q", got)
	}
}
