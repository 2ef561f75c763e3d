// SPDX-License-Identifier: Apache-2.0

// Package shared reads and writes an object that all calculators write and none
// leads in writing: the API server refuses whoever has seen less than is there.
package shared

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Client is what is needed of a client for a namespace's objects of one kind.
type Client[T metav1.Object] interface {
	Get(context.Context, string, metav1.GetOptions) (T, error)
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
}

// Read reads the object that has the name of missing; if there is none, it
// returns missing, so that Write creates it.
func Read[T metav1.Object](ctx context.Context, client Client[T], missing T) (T, error) {
	object, err := client.Get(ctx, missing.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return missing, nil
	case err != nil:
		return missing, fmt.Errorf("reading it: %w", err)
	}
	return object, nil
}

// Write writes an object that Read returned. again tells that somebody else has
// changed it since, so that it has to be read anew.
func Write[T metav1.Object](ctx context.Context, client Client[T], object T) (again bool, err error) {
	if object.GetResourceVersion() == "" {
		_, err = client.Create(ctx, object, metav1.CreateOptions{})
	} else {
		_, err = client.Update(ctx, object, metav1.UpdateOptions{})
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("writing it: %w", err)
	}
	return false, nil
}
