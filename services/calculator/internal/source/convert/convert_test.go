// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/source/convert"
)

// What is only checked and reported is kept as well.
func TestReportedFieldsOfAService(t *testing.T) {
	local, near, timeout := corev1.ServiceInternalTrafficPolicyLocal, "PreferClose", int32(15)
	converted, err := convert.Object(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "x", Annotations: map[string]string{model.AnnotationTopologyMode: "Auto"}},
		Spec: corev1.ServiceSpec{
			SessionAffinity:          corev1.ServiceAffinityClientIP,
			SessionAffinityConfig:    &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}},
			LoadBalancerSourceRanges: []string{"192.0.2.0/24"},
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicyLocal,
			InternalTrafficPolicy:    &local,
			TrafficDistribution:      &near,
			Ports:                    []corev1.ServicePort{{TargetPort: intstr.FromInt32(8080)}, {TargetPort: intstr.FromString("web")}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	service := converted.(*model.Service)
	want := model.Unsupported{SourceRanges: true, ExternalTrafficPolicy: "Local",
		InternalTrafficPolicy: "Local", TrafficDistribution: "PreferClose", TopologyMode: "Auto"}
	if service.Unsupported != want {
		t.Errorf("got %+v, want %+v", service.Unsupported, want)
	}
	if service.SessionAffinity != "ClientIP" || service.AffinityTimeout == nil || *service.AffinityTimeout != 15 {
		t.Errorf("session affinity %q, timeout %v", service.SessionAffinity, service.AffinityTimeout)
	}
	if first, second := service.Ports[0].TargetPort, service.Ports[1].TargetPort; first != 8080 || second != 0 {
		t.Errorf("target ports %d and %d, want 8080 and 0", first, second)
	}
}

// A static pod is known to its node by the UID that the kubelet made.
func TestUIDOfAMirrorPod(t *testing.T) {
	for annotation, want := range map[string]string{"": "object", "static": "static"} {
		converted, err := convert.Object(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "object",
			Annotations: map[string]string{corev1.MirrorPodAnnotationKey: annotation}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := converted.(*model.Pod).UID; got != want {
			t.Errorf("with annotation %q UID %q, want %q", annotation, got, want)
		}
	}
}
