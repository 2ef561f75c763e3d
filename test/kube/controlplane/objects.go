// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// writers is how many objects are written at once: enough to keep the API
// server busy on the machines that tests run on.
const writers = 16

// Apply creates or replaces objects, their status included, which the API
// server takes from a second call only. It knows the kinds that the tests use:
// Node, Pod, Service, EndpointSlice and Namespace. Objects of one call are
// written at the same time and in no order.
func (c *ControlPlane) Apply(ctx context.Context, objects ...runtime.Object) error {
	return c.each(ctx, objects, c.applyOne)
}

// Delete deletes objects at once, without grace. Those that are not there are
// no error.
func (c *ControlPlane) Delete(ctx context.Context, objects ...runtime.Object) error {
	return c.each(ctx, objects, c.deleteOne)
}

func (c *ControlPlane) each(ctx context.Context, objects []runtime.Object, f func(context.Context, runtime.Object) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for _, object := range objects {
		group.Go(func() error { return f(ctx, object) })
	}
	return group.Wait()
}

func (c *ControlPlane) applyOne(ctx context.Context, object runtime.Object) error {
	admin, err := c.Clientset()
	if err != nil {
		return err
	}
	core := admin.CoreV1()
	switch o := object.(type) {
	case *corev1.Node:
		return apply(ctx, core.Nodes(), o, true)
	case *corev1.Pod:
		return apply(ctx, core.Pods(o.Namespace), o, true)
	case *corev1.Service:
		return apply(ctx, core.Services(o.Namespace), o, len(o.Status.LoadBalancer.Ingress) > 0)
	case *discoveryv1.EndpointSlice:
		return apply(ctx, withoutStatus[*discoveryv1.EndpointSlice]{admin.DiscoveryV1().EndpointSlices(o.Namespace)}, o, false)
	case *corev1.Namespace:
		return apply(ctx, core.Namespaces(), o, false)
	}
	return fmt.Errorf("writing a %T is not supported", object)
}

func (c *ControlPlane) deleteOne(ctx context.Context, object runtime.Object) error {
	admin, err := c.Clientset()
	if err != nil {
		return err
	}
	var none int64
	options := metav1.DeleteOptions{GracePeriodSeconds: &none}
	switch o := object.(type) {
	case *corev1.Node:
		err = admin.CoreV1().Nodes().Delete(ctx, o.Name, options)
	case *corev1.Pod:
		err = admin.CoreV1().Pods(o.Namespace).Delete(ctx, o.Name, options)
	case *corev1.Service:
		err = admin.CoreV1().Services(o.Namespace).Delete(ctx, o.Name, options)
	case *discoveryv1.EndpointSlice:
		err = admin.DiscoveryV1().EndpointSlices(o.Namespace).Delete(ctx, o.Name, options)
	default:
		return fmt.Errorf("deleting a %T is not supported", object)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting %T: %w", object, err)
	}
	return nil
}

// object is what all kinds have in common.
type object interface {
	metav1.Object
	DeepCopyObject() runtime.Object
}

// writer is the part of a typed client that apply needs.
type writer[T any] interface {
	Create(ctx context.Context, object T, options metav1.CreateOptions) (T, error)
	Get(ctx context.Context, name string, options metav1.GetOptions) (T, error)
	Update(ctx context.Context, object T, options metav1.UpdateOptions) (T, error)
	UpdateStatus(ctx context.Context, object T, options metav1.UpdateOptions) (T, error)
}

// apply writes one object, then its status if it has one.
func apply[T object](ctx context.Context, client writer[T], wanted T, status bool) error {
	draft := wanted.DeepCopyObject().(T)
	draft.SetUID("") // the API server gives one
	written, err := client.Create(ctx, draft, metav1.CreateOptions{})
	// That a Service exists shows as an invalid address: its own is taken.
	if apierrors.IsAlreadyExists(err) || apierrors.IsInvalid(err) {
		if existing, failed := client.Get(ctx, wanted.GetName(), metav1.GetOptions{}); failed == nil {
			draft.SetResourceVersion(existing.GetResourceVersion())
			written, err = client.Update(ctx, draft, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("writing %T %s: %w", wanted, wanted.GetName(), err)
	}
	if !status {
		return nil
	}
	draft = wanted.DeepCopyObject().(T)
	draft.SetUID(written.GetUID())
	draft.SetResourceVersion(written.GetResourceVersion())
	if _, err := client.UpdateStatus(ctx, draft, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("writing the status of %T %s: %w", wanted, wanted.GetName(), err)
	}
	return nil
}

// withoutStatus completes the client of a kind that has no status.
type withoutStatus[T any] struct {
	statusless[T]
}

type statusless[T any] interface {
	Create(ctx context.Context, object T, options metav1.CreateOptions) (T, error)
	Get(ctx context.Context, name string, options metav1.GetOptions) (T, error)
	Update(ctx context.Context, object T, options metav1.UpdateOptions) (T, error)
}

// UpdateStatus does nothing.
func (withoutStatus[T]) UpdateStatus(_ context.Context, object T, _ metav1.UpdateOptions) (T, error) {
	return object, nil
}
