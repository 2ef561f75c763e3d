// SPDX-License-Identifier: Apache-2.0

package transport_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/services/internal/transport"
)

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "millrace.sock")
	listener, err := transport.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v, want 0660", info.Mode(), err)
	}
	if _, err := transport.ListenUnix(path); err == nil || !strings.Contains(err.Error(), "serves on socket") {
		t.Errorf("a socket in use was taken over: %v", err)
	}
	// A process that is killed leaves its socket behind.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := transport.ListenUnix(path)
	if err != nil {
		t.Fatalf("a socket that was left behind is in the way: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := transport.ListenUnix(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file was replaced: %v", err)
	}
}
