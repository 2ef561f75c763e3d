// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/millrace-project/millrace/calc/model"
)

// kind is how objects of a kind are asked for.
type kind struct {
	apiVersion string
	get        func(context.Context, kubernetes.Interface, model.Key) (metav1.Object, error)
}

// references has the kinds that Events are made of.
var references = map[model.Kind]kind{
	model.KindService: {"v1", func(ctx context.Context, c kubernetes.Interface, k model.Key) (metav1.Object, error) {
		return c.CoreV1().Services(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	}},
	model.KindEndpointSlice: {"discovery.k8s.io/v1", func(ctx context.Context, c kubernetes.Interface, k model.Key) (metav1.Object, error) {
		return c.DiscoveryV1().EndpointSlices(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	}},
	model.KindPod: {"v1", func(ctx context.Context, c kubernetes.Interface, k model.Key) (metav1.Object, error) {
		return c.CoreV1().Pods(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	}},
	model.KindNode: {"v1", func(ctx context.Context, c kubernetes.Interface, k model.Key) (metav1.Object, error) {
		return c.CoreV1().Nodes().Get(ctx, k.Name, metav1.GetOptions{})
	}},
	model.KindConfigMap: {"v1", func(ctx context.Context, c kubernetes.Interface, k model.Key) (metav1.Object, error) {
		return c.CoreV1().ConfigMaps(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	}},
	model.KindNamespace: {"v1", func(ctx context.Context, c kubernetes.Interface, k model.Key) (metav1.Object, error) {
		return c.CoreV1().Namespaces().Get(ctx, k.Name, metav1.GetOptions{})
	}},
}

// reference names an object with the identity by which `kubectl describe` finds
// its Events; the calculation does not keep it.
func (r *Recorder) reference(ctx context.Context, key model.Key) (corev1.ObjectReference, error) {
	k, ok := references[key.Kind]
	if !ok {
		return corev1.ObjectReference{}, fmt.Errorf("there are no Events of the kind %s", key.Kind)
	}
	object, err := k.get(ctx, r.client, key)
	if err != nil {
		return corev1.ObjectReference{}, err
	}
	return corev1.ObjectReference{
		APIVersion: k.apiVersion, Kind: string(key.Kind), Namespace: key.Namespace, Name: key.Name, UID: object.GetUID(),
	}, nil
}
