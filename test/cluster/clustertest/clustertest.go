// SPDX-License-Identifier: Apache-2.0

// Package clustertest gives tests a real cluster. Test packages share the one
// that MILLRACE_CLUSTER names, which `make test-cluster` starts before them; a
// package that runs alone starts its own, and removes it.
package clustertest

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/cluster"
)

// Variable names the environment variable with the name of the cluster.
const Variable = "MILLRACE_CLUSTER"

// StartTimeout is how long a cluster may take to start on a busy machine.
const StartTimeout = 10 * time.Minute

var shared *cluster.Cluster

// Main is for TestMain: it runs the package's tests with a cluster.
func Main(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "tests of a real cluster need root")
		return 1, nil
	}
	if name := os.Getenv(Variable); name != "" {
		if shared, err = cluster.Attach(name); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), StartTimeout)
	defer cancel()
	name := fmt.Sprintf("test-%d", os.Getpid())
	defer func() {
		if removed := cluster.Remove(context.Background(), name); err == nil {
			err = removed
		}
	}()
	if shared, err = cluster.Start(ctx, cluster.Options{Name: name, Progress: os.Stderr}); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// Cluster returns the cluster of the package's tests.
func Cluster(t testing.TB) *cluster.Cluster {
	t.Helper()
	if shared == nil {
		t.Fatal("there is no cluster: TestMain does not call clustertest.Main")
	}
	return shared
}

// Millrace returns the cluster of the package's tests, if Millrace is what it runs.
func Millrace(t testing.TB) *cluster.Cluster {
	t.Helper()
	c := Cluster(t)
	if proxy := c.Options().Proxy; proxy != cluster.Millrace {
		t.Skipf("the cluster runs kube-proxy (%s)", proxy)
	}
	return c
}

// Namespace makes a namespace with a name that begins with the prefix, and
// deletes it when the test ends.
func Namespace(t testing.TB, c *cluster.Cluster, prefix string) string {
	t.Helper()
	name := fmt.Sprintf("%s-%x", prefix, time.Now().UnixNano()&0xffffff)
	if _, err := c.Kubectl(t.Context(), nil, "create", "namespace", name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := c.Kubectl(ctx, nil, "delete", "namespace", name, "--wait=true"); err != nil {
			t.Error(err)
		}
	})
	return name
}
