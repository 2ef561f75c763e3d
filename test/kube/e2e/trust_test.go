// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// What calculators make, by their names.
const (
	caSecret         = "millrace-ca"
	announcementName = "millrace-calculators"
	serverName       = "millrace-calculator"
)

// newTrusted describes the n-th calculator as deploy/ runs it: in a pod, with
// the authority that it keeps with the others.
func (f *fixture) newTrusted(t *testing.T, n int, args ...string) *replica {
	t.Helper()
	r := f.newReplica(t, n, f.kubeconfig)
	r.args = append([]string{"--namespace", calculatorNamespace}, args...)
	return r
}

// pod stands for the pod that the calculator runs in; nobody else makes one
// here.
func (r *replica) pod(ready bool) *corev1.Pod {
	address := r.f.Control.IPv4.String()
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: r.name, Namespace: calculatorNamespace, Labels: map[string]string{"app.kubernetes.io/name": "millrace-calculator"}},
		Spec: corev1.PodSpec{
			HostNetwork: true, NodeName: "control",
			Containers: []corev1.Container{{Name: "calculator", Image: "millrace-calculator",
				Ports: []corev1.ContainerPort{{Name: "grpc", ContainerPort: int32(r.port), HostPort: int32(r.port)}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

// announced is what the ConfigMap says.
func (f *fixture) announced(ctx context.Context, t *testing.T) (addresses []string, authorities []byte) {
	t.Helper()
	admin, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	object, err := admin.CoreV1().ConfigMaps(calculatorNamespace).Get(ctx, announcementName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(object.Data["calculators"]), []byte(object.Data["ca.crt"])
}

// awaitAnnounced waits until these calculators are announced, and no other, with
// that many authorities.
func (f *fixture) awaitAnnounced(ctx context.Context, t *testing.T, authorities int, calculators ...*replica) {
	t.Helper()
	want := addressesOf(calculators)
	if err := testbed.Eventually(ctx, func() error {
		addresses, text := f.announced(ctx, t)
		if got := strings.Count(string(text), "BEGIN CERTIFICATE"); !slices.Equal(addresses, want) || got != authorities {
			return fmt.Errorf("announced are %v and %d authorities, want %v and %d", addresses, got, want, authorities)
		}
		return nil
	}); err != nil {
		t.Fatalf("%v; the log of %s ends with\n%s", err, calculators[0].name, calculators[0].process.LogTail(15))
	}
}

// shown is the certificate that a calculator shows, if it is one that these
// authorities vouch for.
func (r *replica) shown(ctx context.Context, authorities []byte) (*x509.Certificate, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return nil, errors.New("no authority")
	}
	var leaf *x509.Certificate
	err := r.f.Control.Do(func() error {
		dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{RootCAs: pool, ServerName: serverName, NextProtos: []string{"h2"}}}
		conn, err := dialer.DialContext(ctx, "tcp", r.address)
		if err != nil {
			return err
		}
		defer conn.Close()
		leaf = conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
		return nil
	})
	return leaf, err
}

func fingerprint(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// TestTrustAtStart starts calculators at once in a cluster that has nothing yet:
// they end with one authority, all show certificates of it, and announce it with
// the addresses of those that are ready. What an operator breaks is put right or
// named.
func TestTrustAtStart(t *testing.T) {
	f := startPlane(t, testbed.Options{Nodes: 1, PodsPerNode: 1})
	ctx := harness.Limit(t, 120*time.Second)
	var calculators []*replica
	for n := range 4 {
		r := f.newTrusted(t, n)
		f.apply(ctx, t, r.pod(false))
		calculators = append(calculators, r)
	}
	for _, r := range calculators {
		r.start(t)
	}
	// None is ready, but agents should know where they will be.
	f.awaitAnnounced(ctx, t, 1, calculators...)
	_, authorities := f.announced(ctx, t)
	serials := map[string]bool{}
	for _, r := range calculators {
		var leaf *x509.Certificate
		if err := testbed.Eventually(ctx, func() (err error) {
			leaf, err = r.shown(ctx, authorities)
			return err
		}); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		serials[fingerprint(leaf)] = true
		r.await(ctx, t, "it has read everything", func(s *calculatorv1.GetStatusResponse) bool { return s.GetSynced() && len(s.GetProblems()) == 0 })
		r.await(ctx, t, "its status names the authority", func(s *calculatorv1.GetStatusResponse) bool {
			trust := s.GetTrust()
			return trust.GetSecret() == calculatorNamespace+"/"+caSecret && len(trust.GetAuthorities()) == 1 &&
				trust.GetAuthorities()[0].GetRole() == calculatorv1.AuthorityRole_AUTHORITY_ROLE_CURRENT && trust.GetServingExpireTime() != nil
		})
	}
	if len(serials) != len(calculators) {
		t.Errorf("%d calculators show %d certificates, each should have its own", len(calculators), len(serials))
	}

	// Who is ready, and what is ending, counts.
	f.apply(ctx, t, calculators[1].pod(true), calculators[2].pod(true))
	f.awaitAnnounced(ctx, t, 1, calculators[1], calculators[2])
	f.apply(ctx, t, calculators[1].pod(false), calculators[2].pod(false))
	f.awaitAnnounced(ctx, t, 1, calculators...)
	f.apply(ctx, t, calculators[0].pod(true))
	f.awaitAnnounced(ctx, t, 1, calculators[0])
	// The one that is announced goes last, so that the list never changes.
	for _, r := range slices.Backward(calculators) {
		f.delete(ctx, t, r.pod(false))
	}
	// What an operator removes, and what there is no telling of.
	admin, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	maps := admin.CoreV1().ConfigMaps(calculatorNamespace)
	patch := []byte(`{"data":{"ca.crt":"nonsense","note":"an operator's"}}`)
	if _, err := maps.Patch(ctx, announcementName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.awaitAnnounced(ctx, t, 1, calculators[0]) // no pod is left: the list stays
	if object, err := maps.Get(ctx, announcementName, metav1.GetOptions{}); err != nil || object.Data["note"] == "" {
		t.Errorf("what is not the calculators' was taken out: %v %v", object.Data, err)
	}
	secrets := admin.CoreV1().Secrets(calculatorNamespace)
	secret, err := secrets.Get(ctx, caSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret.Data["tls.key"] = []byte("nonsense")
	if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	calculators[0].awaitProblem(ctx, t, "Secret", caSecret, "data[tls.key]")
	if _, err := calculators[0].shown(ctx, authorities); err != nil {
		t.Errorf("with a damaged Secret: %v", err)
	}
	if err := secrets.Delete(ctx, caSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range calculators {
		r.await(ctx, t, "all is well after the Secret was deleted", func(s *calculatorv1.GetStatusResponse) bool {
			return len(s.GetProblems()) == 0 && len(s.GetTrust().GetAuthorities()) == 1
		})
		if err := testbed.Eventually(ctx, func() error {
			_, now := f.announced(ctx, t)
			_, err := r.shown(ctx, now)
			if err == nil && string(now) == string(authorities) {
				err = errors.New("the old authority is still announced")
			}
			return err
		}); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
	}
}

func parseOne(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no certificate: %s", text)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}
