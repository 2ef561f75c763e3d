// SPDX-License-Identifier: Apache-2.0

package command_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/services/calculator/internal/command"
)

// TestAPIServerOutOfReach starts a calculator whose API server does not answer:
// log and readiness tell where it was looked for, and who said so.
func TestAPIServerOutOfReach(t *testing.T) {
	nobody, metrics := freePort(t), freePort(t)
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
current-context: c
`, nobody)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	said, exit := &lockedBuffer{}, make(chan int, 1)
	go func() {
		exit <- command.Main(ctx, []string{"--kubeconfig=" + kubeconfig, "--socket=" + filepath.Join(dir, "s"), "--listen=",
			"--metrics-listen=" + metrics, "--drain-time=0s", "--drain-grace=0s"}, io.Discard, said)
	}()
	want := []string{"https://" + nobody + " (from kubeconfig " + kubeconfig + ")", "connection refused"}
	var answer string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if response, err := http.Get("http://" + metrics + "/readyz"); err == nil {
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			if answer = string(body); err == nil && response.StatusCode == http.StatusServiceUnavailable && containsAll(answer, want) {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready tells %q, want %q; its log:\n%s", answer, want, said)
		}
	}
	if !containsAll(said.String(), want) {
		t.Errorf("the log lacks %q:\n%s", want, said)
	}
	stop()
	if status := <-exit; status != 0 {
		t.Errorf("status %d", status)
	}
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
