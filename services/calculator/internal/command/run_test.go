// SPDX-License-Identifier: Apache-2.0

package command_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/access"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/command"
)

const manifest = `apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}, {name: bad, port: 70000}]}
`

// process is a calculator that runs in the test's process.
type process struct {
	t      *testing.T
	dir    string
	stop   context.CancelFunc
	exit   chan int
	stderr *lockedBuffer
}

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, dir: t.TempDir(), exit: make(chan int, 1), stderr: &lockedBuffer{}}
	manifests := filepath.Join(p.dir, "manifests")
	if err := os.Mkdir(manifests, 0o700); err != nil {
		t.Fatal(err)
	}
	p.write(manifest)
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	args = append([]string{"--source=dir", "--manifests=" + manifests, "--socket=" + p.socket(), "--drain-time=100ms", "--drain-grace=5s"}, args...)
	go func() { p.exit <- command.Main(ctx, args, io.Discard, p.stderr) }()
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Log(p.stderr.String())
		}
	})
	return p
}

func (p *process) socket() string { return filepath.Join(p.dir, "calculator.sock") }

func (p *process) write(content string) {
	p.t.Helper()
	path := filepath.Join(p.dir, "manifests", "all.yaml")
	if err := os.WriteFile(path+".tmp", []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		p.t.Fatal(err)
	}
}

func dial(t *testing.T, target string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func hello(node string) *dataplanev1.SyncRequest {
	request := &dataplanev1.Hello{NodeName: node}
	for number := range dataplanev1.ResourceType_name {
		if number != 0 {
			request.Types = append(request.Types, &dataplanev1.TypeSupport{Type: dataplanev1.ResourceType(number), Schema: 100})
		}
	}
	return &dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Hello{Hello: request}}
}

// batch receives up to the next commit and returns the keys of services that
// are set and removed.
func batch(stream dataplanev1.SyncService_SyncClient) (services []string, err error) {
	for {
		response, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		for _, resource := range response.GetUpdate().GetUpserts() {
			if service := resource.GetService(); service != nil {
				services = append(services, fmt.Sprintf("+%s:%d", service.GetName(), service.GetPorts()[0].GetPort()))
			}
		}
		for _, n := range response.GetUpdate().GetRemovals() {
			if n.GetType() == dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE {
				services = append(services, "-"+n.GetKey())
			}
		}
		if response.GetCommit() != nil {
			return services, nil
		}
		if drain := response.GetDrain(); drain != nil {
			return nil, fmt.Errorf("drain: %s", drain.GetReason())
		}
	}
}

func TestFromManifestToAgent(t *testing.T) {
	metrics := freePort(t)
	p := start(t, "--listen=", "--metrics-listen="+metrics, "--pprof")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	connection := dial(t, "unix://"+p.socket(), insecure.NewCredentials())
	stream, err := dataplanev1.NewSyncServiceClient(connection).Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(hello("n1")); err != nil {
		t.Fatal(err)
	}
	if services, err := batch(stream); err != nil || fmt.Sprint(services) != "[+web:80]" {
		t.Fatalf("first batch: services %v, error %v", services, err)
	}
	if check, err := healthv1.NewHealthClient(connection).Check(ctx, &healthv1.HealthCheckRequest{Service: "millrace.dataplane.v1.SyncService"}); err != nil || check.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", check, err)
	}
	client := calculatorv1.NewCalculatorServiceClient(connection)
	answer, err := client.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
	if err != nil || !answer.GetSynced() || answer.GetSource() != "dir" || answer.GetResources()["RESOURCE_TYPE_SERVICE"] != 1 || answer.GetRevision() != 1 {
		t.Errorf("status %v, %v", answer, err)
	}
	if problems := answer.GetProblems(); len(problems) != 1 || problems[0].GetName() != "web" || problems[0].GetField() != "spec.ports[1].port" {
		t.Errorf("problems %v, want one of web", problems)
	}
	dump, err := client.DumpNode(ctx, &calculatorv1.DumpNodeRequest{NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for {
		one, err := dump.Recv()
		if err != nil {
			break
		}
		keys = append(keys, one.GetResource().GetName().GetKey())
	}
	if got := strings.Join(keys, " "); got != "n1 n1 default/web" {
		t.Errorf("dump of n1: %s", got)
	}
	dump, err = client.DumpNode(ctx, &calculatorv1.DumpNodeRequest{NodeName: "absent"})
	if err == nil {
		_, err = dump.Recv()
	}
	if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `"absent"`) {
		t.Errorf("dump of an absent node: %v", err)
	}

	p.write(strings.Replace(manifest, "port: 80}", "port: 81}", 1))
	if services, err := batch(stream); err != nil || fmt.Sprint(services) != "[+web:81]" {
		t.Errorf("second batch: services %v, error %v", services, err)
	}
	nodes, err := client.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
	if err != nil || len(nodes.GetNodes()) != 1 || !nodes.GetNodes()[0].GetConnected() || nodes.GetNodes()[0].GetSentRevision() != 2 {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	for path, want := range map[string]string{
		"/metrics": "millrace_calculator_streams 1", "/healthz": "ok", "/readyz": "ok", "/debug/pprof/cmdline": "",
	} {
		response, err := http.Get("http://" + metrics + path)
		if err != nil {
			t.Error(err)
			continue
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d, %v, does not contain %q", path, response.StatusCode, err, want)
		}
	}

	p.stop()
	if _, err := batch(stream); err == nil || !strings.Contains(err.Error(), "drain: ") {
		t.Errorf("stopping told the agent %v, want drain", err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	select {
	case code := <-p.exit:
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(3 * time.Second): // before the time of grace, as nobody is left
		t.Error("the calculator does not stop")
	}
	if _, err := os.Stat(p.socket()); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestAddressInUse(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	p := start(t, "--listen="+listener.Addr().String(), "--metrics-listen=")
	if code := <-p.exit; code != 1 || !strings.Contains(p.stderr.String(), "--listen") || !strings.Contains(p.stderr.String(), "in use") {
		t.Errorf("exit code %d, %s", code, p.stderr.String())
	}
}

// authority issues certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.issue("ca", "")
	return a
}

// issue writes NAME.crt and NAME.key; without a common name it makes the
// authority's own.
func (a *authority) issue(name, commonName string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if commonName == "" {
		template.Subject.CommonName, template.IsCA, template.BasicConstraintsValid = "authority", true, true
		template.KeyUsage = x509.KeyUsageCertSign
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	encodedKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encodedKey})
	for file, content := range map[string][]byte{name + ".crt": certPEM, name + ".key": keyPEM} {
		if err := os.WriteFile(filepath.Join(a.dir, file), content, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	if commonName == "" {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
		a.key = key
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		a.t.Fatal(err)
	}
	return pair
}

// The credential says which node an agent is, whatever the agent says.
func TestMutualTLSDecidesTheNode(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", "calculator")
	address := freePort(t)
	start(t, "--listen="+address, "--metrics-listen=", "--tls-cert="+filepath.Join(a.dir, "server.crt"), "--tls-key="+filepath.Join(a.dir, "server.key"),
		"--tls-client-ca="+filepath.Join(a.dir, "ca.crt"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	try := func(certificate *tls.Certificate, node string) error {
		config := &tls.Config{RootCAs: roots}
		if certificate != nil {
			config.Certificates = []tls.Certificate{*certificate}
		}
		stream, err := dataplanev1.NewSyncServiceClient(dial(t, address, credentials.NewTLS(config))).Sync(ctx, grpc.WaitForReady(certificate != nil))
		if err != nil {
			return err
		}
		// A stream that was refused already takes nothing; Recv knows why.
		if err := stream.Send(hello(node)); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err = batch(stream)
		return err
	}
	n1, n2 := a.issue("n1", "system:node:n1"), a.issue("n2", "system:node:n2")
	shared := a.issue("shared", "millrace-agent")
	if err := try(&shared, "n1"); access.ReasonOf(err) != access.ReasonForeignAccount {
		t.Errorf("with a certificate of no node, n1: %v, want reason %s", err, access.ReasonForeignAccount)
	}
	for _, node := range []string{"n1", ""} {
		if err := try(&n1, node); err != nil {
			t.Errorf("n1 as %q: %v", node, err)
		}
	}
	if err := try(&n2, "n1"); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "hello.node_name") {
		t.Errorf("n2 as n1: %v, want PermissionDenied naming hello.node_name", err)
	}
	if err := try(nil, "n1"); status.Code(err) != codes.Unauthenticated || access.ReasonOf(err) != access.ReasonNoCredential {
		t.Errorf("without a certificate: %v, want Unauthenticated, reason %s", err, access.ReasonNoCredential)
	}
	// Who has a certificate of the operator's CA may read; there is nobody else
	// to ask.
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{shared}}
	if _, err := calculatorv1.NewCalculatorServiceClient(dial(t, address, credentials.NewTLS(config))).GetStatus(ctx, &calculatorv1.GetStatusRequest{}); err != nil {
		t.Errorf("reading with a certificate of no node: %v", err)
	}
	config = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{n1}}
	_, err := calculatorv1.NewCalculatorServiceClient(dial(t, address, credentials.NewTLS(config))).GetStatus(ctx, &calculatorv1.GetStatusRequest{})
	if access.ReasonOf(err) != access.ReasonNotAllowed {
		t.Errorf("an agent asks for the calculator's status: %v, want reason %s", err, access.ReasonNotAllowed)
	}
}
