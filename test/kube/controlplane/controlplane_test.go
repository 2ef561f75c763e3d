// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// TestControlPlane walks through what the other tests rely on: dual-stack
// allocation, kubectl, RBAC on service account tokens, state kept over a
// restart of the API server, and an orderly end.
func TestControlPlane(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	begin := time.Now()
	c, err := Start(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready in %v", time.Since(begin).Round(time.Millisecond))
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			c.Stop()
		}
	})
	admin, err := c.Clientset()
	if err != nil {
		t.Fatal(err)
	}

	policy := corev1.IPFamilyPolicyRequireDualStack
	svc, err := admin.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &policy, Type: corev1.ServiceTypeNodePort,
			Ports: []corev1.ServicePort{{Port: 80}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(svc.Spec.ClusterIPs); n != 2 {
		t.Errorf("a dual-stack service got %d cluster IPs: %v", n, svc.Spec.ClusterIPs)
	}

	if out, err := c.Kubectl(ctx, nil, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"); err != nil || out != svc.Spec.ClusterIP {
		t.Errorf("kubectl printed %q, %v; want %q", out, err, svc.Spec.ClusterIP)
	}
	if _, err := c.Kubectl(ctx, strings.NewReader("kind: Nonsense\napiVersion: v1\n"), "apply", "-f", "-"); err == nil {
		t.Error("kubectl applied an object of no kind")
	}

	checkServiceAccount(ctx, t, c, admin)

	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := admin.CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil || again.UID != svc.UID {
		t.Errorf("after a restart the service is %v, %v; want uid %s", again.UID, err, svc.UID)
	}

	stopped = true
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	if c.apiserver.Running() == nil || c.etcd.Running() == nil {
		t.Error("a process outlived Stop")
	}
	if _, err := os.Stat(c.Dir()); !os.IsNotExist(err) {
		t.Errorf("the temporary directory outlived Stop: %v", err)
	}
}

// checkServiceAccount sees that a token has the rights of its service account
// and no others.
func checkServiceAccount(ctx context.Context, t *testing.T, c *ControlPlane, admin kubernetes.Interface) {
	t.Helper()
	if _, err := admin.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"services"}, Verbs: []string{"list"}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "reader"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "reader"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	path, err := c.TokenKubeconfig(ctx, "", "default", "reader")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.CoreV1().Services("").List(ctx, metav1.ListOptions{}); err != nil {
		t.Errorf("listing services with the right to: %v", err)
	}
	if _, err := reader.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing nodes without the right to: %v; want forbidden", err)
	}
}

// TestNetworkNamespace runs the control plane where only its namespace reaches
// it, and reaches it from another one by Forward.
func TestNetworkNamespace(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	home, other := makeNetNS(t, "mrkube-home"), makeNetNS(t, "mrkube-other")
	c, err := Start(ctx, Options{NetNS: home, Address: netip.MustParseAddr("127.0.0.1"), Port: 6443})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	forward, err := c.Forward(other, "127.0.0.1:7443")
	if err != nil {
		t.Fatal(err)
	}
	config, err := c.Kubeconfig("127.0.0.1:7443", "someone", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	kubectl, err := Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	get := func() (string, error) {
		out, err := exec.Command("nsenter", "--net="+other, kubectl, "--kubeconfig="+config,
			"--request-timeout=5s", "get", "namespace", "default", "-o", "name").CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := get(); err != nil || out != "namespace/default" {
		t.Errorf("through Forward kubectl printed %q, %v", out, err)
	}
	if err := forward.Close(); err != nil {
		t.Error(err)
	}
	if out, err := get(); err == nil {
		t.Errorf("after Close of the Forward kubectl still printed %q", out)
	}
}

// makeNetNS makes a network namespace with its loopback device up.
func makeNetNS(t *testing.T, name string) string {
	t.Helper()
	for _, args := range [][]string{{"netns", "add", name}, {"-n", name, "link", "set", "lo", "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("removing %s: %v: %s", name, err, out)
		}
	})
	return "/run/netns/" + name
}

func TestBinaryAbsent(t *testing.T) {
	t.Setenv("MILLRACE_KUBE_BIN", t.TempDir())
	_, err := Start(t.Context(), Options{})
	if err == nil || !strings.Contains(err.Error(), "make kube-binaries") {
		t.Errorf("without binaries Start says %v; want how to build them", err)
	}
}

// TestPreload writes a service behind the API server's back and finds it there,
// with its address taken.
func TestPreload(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := Start(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	admin, err := c.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	service := func(name string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.7.7", ClusterIPs: []string{"10.96.7.7"},
				IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
			},
		}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "first-1", Labels: map[string]string{discoveryv1.LabelServiceName: "first"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.9"}}},
	}
	if err := c.Preload(ctx, service("first"), slice); err != nil {
		t.Fatal(err)
	}
	found, err := admin.CoreV1().Services("default").Get(ctx, "first", metav1.GetOptions{})
	if err != nil || found.Spec.ClusterIP != "10.96.7.7" || found.Spec.SessionAffinity != corev1.ServiceAffinityNone {
		t.Errorf("the service is %+v, %v", found, err)
	}
	endpoints, err := admin.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=first"})
	if err != nil || len(endpoints.Items) != 1 || endpoints.Items[0].Endpoints[0].Addresses[0] != "10.244.1.9" {
		t.Errorf("the endpoint slices are %+v, %v", endpoints, err)
	}
	if _, err := admin.CoreV1().Services("default").Create(ctx, service("second"), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("the address was given out twice: %v", err)
	}
	if err := c.Preload(ctx, &corev1.Pod{}); err == nil {
		t.Error("a kind that is not supported was written")
	}
}
