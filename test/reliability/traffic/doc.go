// SPDX-License-Identifier: Apache-2.0

// Package traffic puts a cluster of the testbed under load and counts every
// request of it. The load takes each way that there is to a Service: on new and
// on open TCP connections, on new, connected and unconnected UDP sockets, in
// both families, by the programs at sockets and by those on devices, from pods,
// from a node and from outside, to backends of the same and of another node,
// and to the client itself.
//
// What counts as failed is said at probe.Stream.
package traffic

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/testbed"
)

// Objects is where Services and EndpointSlices are written to.
type Objects interface {
	Apply(ctx context.Context, objects ...runtime.Object) error
	Delete(ctx context.Context, objects ...runtime.Object) error
}

// Directory is the Objects of a cluster whose calculator reads its manifest
// directory.
func Directory(cluster *testbed.Cluster) Objects { return directory{cluster} }

type directory struct{ cluster *testbed.Cluster }

// Apply writes each object to a file of its own.
func (d directory) Apply(_ context.Context, objects ...runtime.Object) error {
	for _, object := range objects {
		name, err := fileName(object)
		if err != nil {
			return err
		}
		if err := d.cluster.Apply(name, object); err != nil {
			return err
		}
	}
	return nil
}

// Delete removes the files.
func (d directory) Delete(_ context.Context, objects ...runtime.Object) error {
	for _, object := range objects {
		name, err := fileName(object)
		if err != nil {
			return err
		}
		if err := d.cluster.Delete(name); err != nil {
			return err
		}
	}
	return nil
}

func fileName(object runtime.Object) (string, error) {
	named, ok := object.(interface{ GetName() string })
	if !ok {
		return "", fmt.Errorf("%T has no name", object)
	}
	kind := object.GetObjectKind().GroupVersionKind().Kind
	return strings.ToLower(kind) + "-" + named.GetName(), nil
}
