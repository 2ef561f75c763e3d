// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/millrace-project/millrace/services/calculator/internal/trust/announce"
)

func pod(name string, ready, ending bool, phase corev1.PodPhase, port int32, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.PodStatus{Phase: phase}}
	if ending {
		p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	if port != 0 {
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: 1}, {Name: announce.PortName, ContainerPort: port}}}}
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(ips) > 0 {
		p.Status.PodIP = ips[0]
	}
	return p
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	present := []string{"10.9.9.9:7700"}
	running, ready := corev1.PodRunning, true
	for name, c := range map[string]struct {
		pods []*corev1.Pod
		want []string
	}{
		"those that are ready": {[]*corev1.Pod{pod("a", ready, false, running, 7701, "10.0.0.2", "fd00::2"), pod("b", ready, false, running, 0, "10.0.0.1"),
			pod("c", false, false, running, 7701, "10.0.0.3"), pod("d", ready, true, running, 7701, "10.0.0.4")},
			[]string{"10.0.0.1:7700", "10.0.0.2:7701", "[fd00::2]:7701"}},
		"none is ready": {[]*corev1.Pod{pod("a", false, false, running, 0, "10.0.0.2"), pod("b", false, true, running, 0, "10.0.0.3"),
			pod("c", false, false, corev1.PodFailed, 0, "10.0.0.4"), pod("d", false, false, corev1.PodPending, 0)}, []string{"10.0.0.2:7700"}},
		"two on one node":           {[]*corev1.Pod{pod("a", ready, false, running, 0, "10.0.0.2"), pod("b", ready, false, running, 0, "10.0.0.2")}, []string{"10.0.0.2:7700"}},
		"all are ending":            {[]*corev1.Pod{pod("b", ready, true, running, 0, "10.0.0.3")}, present},
		"none has an address":       {[]*corev1.Pod{pod("b", false, false, corev1.PodPending, 0)}, present},
		"an address that is no one": {[]*corev1.Pod{pod("b", ready, false, running, 0, "nonsense", "10.0.0.3")}, []string{"10.0.0.3:7700"}},
		"no pod":                    {nil, present},
	} {
		if got := announce.Addresses(c.pods, 7700, present); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// maps has one ConfigMap, and answers writes with an error if there is one.
type maps struct {
	object *corev1.ConfigMap
	err    error
	writes int
}

func (m *maps) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.ConfigMap, error) {
	if m.object == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return m.object.DeepCopy(), nil
}

func (m *maps) Create(_ context.Context, object *corev1.ConfigMap, _ metav1.CreateOptions) (*corev1.ConfigMap, error) {
	if m.object != nil {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "configmaps"}, object.Name)
	}
	return m.Update(context.Background(), object, metav1.UpdateOptions{})
}

func (m *maps) Update(_ context.Context, object *corev1.ConfigMap, _ metav1.UpdateOptions) (*corev1.ConfigMap, error) {
	if m.err != nil {
		return nil, m.err
	}
	m.writes++
	m.object = object.DeepCopy()
	m.object.ResourceVersion = strconv.Itoa(m.writes)
	return object, nil
}

// TestWrite writes what differs, keeps what is others', and tells when somebody
// else was first.
func TestWrite(t *testing.T) {
	t.Parallel()
	m := &maps{}
	write := func(want bool, addresses ...string) {
		t.Helper()
		a, err := announce.Read(t.Context(), m, "x")
		if err != nil {
			t.Fatal(err)
		}
		changed, again, err := a.Write(t.Context(), m, addresses, nil)
		if err != nil || again || changed != want {
			t.Errorf("changed %v, again %v, %v", changed, again, err)
		}
	}
	write(true, "10.0.0.1:1")
	write(false, "10.0.0.1:1")
	m.object.Data["note"] = "an operator's"
	write(false, "10.0.0.1:1")
	write(true, "10.0.0.1:1", "10.0.0.2:1")
	if m.object.Data["note"] == "" || m.object.Data["calculators"] != "10.0.0.1:1\n10.0.0.2:1\n" || m.writes != 2 {
		t.Errorf("%d writes gave %v", m.writes, m.object.Data)
	}
	a, err := announce.Read(t.Context(), m, "x")
	if err != nil || !slices.Equal(a.Addresses, []string{"10.0.0.1:1", "10.0.0.2:1"}) {
		t.Errorf("read %v, %v", a.Addresses, err)
	}
	resource := schema.GroupResource{Resource: "configmaps"}
	for what, err := range map[string]error{"changed": apierrors.NewConflict(resource, "x", nil),
		"made": apierrors.NewAlreadyExists(resource, "x"), "removed": apierrors.NewNotFound(resource, "x")} {
		m.err = err
		if changed, again, err := a.Write(t.Context(), m, nil, nil); changed || !again || err != nil {
			t.Errorf("by somebody else %s: changed %v, again %v, %v", what, changed, again, err)
		}
	}
	m.err = apierrors.NewForbidden(resource, "x", nil)
	if changed, again, err := a.Write(t.Context(), m, nil, nil); changed || again || !apierrors.IsForbidden(err) {
		t.Errorf("forbidden: changed %v, again %v, %v", changed, again, err)
	}
}
