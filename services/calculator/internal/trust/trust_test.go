// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// TestForbidden names the rights that are missing, until they are there.
func TestForbidden(t *testing.T) {
	var told []problem.Problem
	k := &Keeper{Options: Options{SetProblems: func(_ string, problems []problem.Problem) { told = problems }}, wrong: map[string]string{}}
	k.metrics = newMetrics(prometheus.NewRegistry(), k)
	forbidden := apierrors.NewForbidden(schema.GroupResource{}, "x", errors.New("no role"))
	for kind, verbs := range map[model.Kind]string{
		KindSecret: "grant get, create and update on it to", model.KindConfigMap: "grant get, create and update on it to", model.KindPod: "grant list and watch to",
	} {
		object := model.Key{Kind: kind, Namespace: "ns", Name: "x"}
		k.note(context.Background(), "part", object, forbidden)
		if len(told) != 1 || told[0].Object != object || !strings.Contains(told[0].Message, verbs) {
			t.Errorf("%s: told %v, want %q", kind, told, verbs)
		}
		k.note(context.Background(), "part", object, nil)
		if len(told) != 0 {
			t.Errorf("%s: still told %v", kind, told)
		}
	}
}
