// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/cluster/clustertest"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// echoManifest is a service of as many servers as there are nodes, one on each,
// and a client pod on every node.
const echoManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: server}
spec:
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: server
          image: IMAGE
          args: [netexec, --http-port=8080, --udp-port=8081]
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: server}
  ports:
    - {name: http, port: 80, targetPort: 8080}
    - {name: udp, port: 81, targetPort: 8081, protocol: UDP}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: client, image: IMAGE, args: [pause]}
`

// echo is the service and its clients.
type echo struct {
	cluster   *cluster.Cluster
	namespace string
	service   *corev1.Service
	servers   []string // names of pods, sorted
	clients   []corev1.Pod
}

func newEcho(t *testing.T, c *cluster.Cluster) *echo {
	t.Helper()
	e := &echo{cluster: c, namespace: clustertest.Namespace(t, c, "echo")}
	manifest := strings.ReplaceAll(echoManifest, "IMAGE", cluster.AgnhostImage)
	if _, err := c.Kubectl(t.Context(), strings.NewReader(manifest), "-n", e.namespace, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	ctx := harness.Limit(t, 2*time.Minute)
	for _, set := range []string{"server", "client"} {
		if _, err := c.Kubectl(ctx, nil, "-n", e.namespace, "rollout", "status", "daemonset/"+set); err != nil {
			t.Fatal(err)
		}
	}
	client, err := c.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	if e.service, err = client.CoreV1().Services(e.namespace).Get(ctx, "echo", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	pods, err := client.CoreV1().Pods(e.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if pod.Labels["app"] == "client" {
			e.clients = append(e.clients, pod)
		} else {
			e.servers = append(e.servers, pod.Name)
		}
	}
	slices.Sort(e.servers)
	if len(e.servers) != len(c.Nodes()) || len(e.clients) != len(c.Nodes()) {
		t.Fatalf("%d servers and %d clients on %d nodes", len(e.servers), len(e.clients), len(c.Nodes()))
	}
	return e
}

// shell asks the service's address six times a server, so that all but surely
// each was chosen, and prints who answered.
func (e *echo) shell(url string) []string {
	return []string{"sh", "-c", fmt.Sprintf("for i in $(seq %d); do curl -sS -m 5 -g %s/hostname && echo; done | sort -u", 8*len(e.servers), url)}
}

// everyoneAnswers runs a client until all servers have answered it: a service
// that has just been made is not yet everywhere.
func (e *echo) everyoneAnswers(t *testing.T, from, url string, client func(ctx context.Context, args ...string) (string, error)) {
	t.Helper()
	ctx := harness.Limit(t, time.Minute)
	if err := testbed.Eventually(ctx, func() error {
		out, err := client(ctx, e.shell(url)...)
		if answered := strings.Fields(out); err != nil || !slices.Equal(answered, e.servers) {
			return errors.Join(err, fmt.Errorf("answers came from %v, want %v", answered, e.servers))
		}
		return nil
	}); err != nil {
		t.Fatalf("%s to %s: %v", from, url, err)
	}
}

// clusterURLs are where the service is inside the cluster.
func (e *echo) clusterURLs() (byAddress []string, byName string) {
	for _, ip := range e.service.Spec.ClusterIPs {
		byAddress = append(byAddress, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String())
	}
	return byAddress, "http://echo." + e.namespace
}

// nodePortURLs are where the service is on every node.
func (e *echo) nodePortURLs() []string {
	var urls []string
	for _, n := range e.cluster.Nodes() {
		for _, a := range n.Addresses() {
			urls = append(urls, "http://"+netip.AddrPortFrom(a, uint16(e.service.Spec.Ports[0].NodePort)).String())
		}
	}
	return urls
}

// check lets clients of every kind, on every node, use the service in every
// way.
func (e *echo) check(t *testing.T) {
	addresses, name := e.clusterURLs()
	inside := append(addresses, e.nodePortURLs()...)
	for _, pod := range e.clients {
		inPod := func(ctx context.Context, args ...string) (string, error) {
			return e.cluster.Kubectl(ctx, nil, append([]string{"-n", e.namespace, "exec", pod.Name, "--"}, args...)...)
		}
		for _, url := range append(inside, name) {
			e.everyoneAnswers(t, "a pod on "+pod.Spec.NodeName, url, inPod)
		}
	}
	for _, n := range e.cluster.Nodes() {
		for _, url := range inside {
			e.everyoneAnswers(t, n.Name+" itself", url, n.Exec)
		}
	}
	for _, url := range e.nodePortURLs() {
		e.everyoneAnswers(t, "outside", url, e.cluster.ExecOutside)
	}
}

// TestFrontends: pods and hosts of all nodes, and clients outside, reach a
// service by its cluster IP, its name and every node's port, and each of its
// servers.
func TestFrontends(t *testing.T) {
	newEcho(t, clustertest.Cluster(t)).check(t)
}

// TestUDP: pods of all nodes reach a service by UDP.
func TestUDP(t *testing.T) {
	e := newEcho(t, clustertest.Cluster(t))
	for _, pod := range e.clients {
		ctx := harness.Limit(t, time.Minute)
		var answered []string
		if err := testbed.Eventually(ctx, func() error {
			out, err := e.cluster.Kubectl(ctx, nil, "-n", e.namespace, "exec", pod.Name, "--",
				"sh", "-c", "echo hostname | nc -u -w 1 "+e.service.Spec.ClusterIP+" 81")
			if name := strings.TrimSpace(out); name != "" && !slices.Contains(answered, name) {
				answered = append(answered, name)
				slices.Sort(answered)
			}
			if len(answered) < len(e.servers) {
				return errors.Join(err, fmt.Errorf("answers came from %v", answered))
			}
			return nil
		}); err != nil || !slices.Equal(answered, e.servers) {
			t.Errorf("a pod on %s got answers from %v, want %v (%v)", pod.Spec.NodeName, answered, e.servers, err)
		}
	}
}
