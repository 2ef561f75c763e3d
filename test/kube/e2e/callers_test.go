// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/proto/access"
	"github.com/millrace-project/millrace/test/testbed"
)

const (
	agentAccount  = "millrace-agent"
	tokenAudience = "millrace-calculator"
	readerAccount = "reader"
	otherAccount  = "other"
)

// callers are the ways to call a server.
type callers struct {
	*fixture
	authorities []byte
	// pods are the agents', by node.
	pods map[string]*corev1.Pod
}

// newCallers makes the agents' pods and accounts that are none of Millrace's, one
// of which may read what readers may.
func (f *fixture) newCallers(ctx context.Context, t *testing.T) *callers {
	t.Helper()
	admin, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	c := &callers{fixture: f, pods: map[string]*corev1.Pod{}}
	for _, node := range f.Nodes {
		c.pods[node.Name] = c.addAgentPod(ctx, t, node)
	}
	for _, name := range []string{readerAccount, otherAccount} {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := admin.CoreV1().ServiceAccounts("default").Create(ctx, account, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const role = "millrace-reader" // of deploy/
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: role},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "default", Name: readerAccount}}}
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// addAgentPod makes the pod of a node's agent.
func (f *fixture) addAgentPod(ctx context.Context, t *testing.T, node *testbed.Node) *corev1.Pod {
	t.Helper()
	admin, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: calculatorNamespace, Name: "millrace-agent-" + node.Name},
		Spec: corev1.PodSpec{NodeName: node.Name, ServiceAccountName: agentAccount, HostNetwork: true,
			Containers: []corev1.Container{{Name: "agent", Image: "millrace-agent"}}},
	}
	if pod, err = admin.CoreV1().Pods(calculatorNamespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return pod
}

func (f *fixture) token(ctx context.Context, t *testing.T, namespace, account, audience string, pod *corev1.Pod) string {
	t.Helper()
	token, err := f.plane.TokenFor(ctx, namespace, account, audience, pod)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// agentToken is the token of a node's agent, as the kubelet would write it.
func (c *callers) agentToken(ctx context.Context, t *testing.T, node string) string {
	t.Helper()
	return c.token(ctx, t, calculatorNamespace, agentAccount, tokenAudience, c.pods[node])
}

// dialTLS connects to an address that a host reaches, and expects a name there.
func (c *callers) dialTLS(t *testing.T, host *testbed.Host, address, name string) *grpc.ClientConn {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.authorities) {
		t.Fatal("no authority")
	}
	config := &tls.Config{RootCAs: pool, ServerName: name}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return host.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func dialSocket(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// with shows a token.
func with(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, access.Header, access.Bearer(token))
}

// methods are all RPCs that a server has registered, as it says itself.
func methods(ctx context.Context, t *testing.T, conn *grpc.ClientConn) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]protoreflect.MethodDescriptor{}
	for _, service := range answer.GetListServicesResponse().GetService() {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.GetName()))
		if err != nil {
			t.Fatalf("service %s is registered, and nothing is known of it: %v", service.GetName(), err)
		}
		list := found.(protoreflect.ServiceDescriptor).Methods()
		for i := range list.Len() {
			all[fmt.Sprintf("/%s/%s", service.GetName(), list.Get(i).Name())] = list.Get(i)
		}
	}
	return all
}

// attempt calls an RPC with an empty message and returns how it begins to
// answer.
func attempt(ctx context.Context, conn *grpc.ClientConn, method string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// documented is the table of docs/security.md: by RPC and kind of caller, whether
// it may.
func documented(t *testing.T) map[string]map[string]bool {
	t.Helper()
	content, err := os.ReadFile("../../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]map[string]bool{}
	var kinds []string
	for line := range strings.Lines(string(content)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " `")
		}
		switch {
		case cells[0] == "RPC":
			kinds = cells[1:]
		case strings.HasPrefix(cells[0], "/") && len(cells) == len(kinds)+1:
			row := map[string]bool{}
			for i, kind := range kinds {
				row[kind] = cells[i+1] == "yes"
			}
			table[cells[0]] = row
		}
	}
	return table
}

// expectRefusal fails unless a call was refused for this reason.
func expectRefusal(t *testing.T, what string, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || access.ReasonOf(err) != reason {
		t.Errorf("%s: %v (reason %q); want %s with reason %s", what, err, access.ReasonOf(err), code, reason)
	}
}
