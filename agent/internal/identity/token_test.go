// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/access"
)

// TestTokenFile: the file is read for each call, and what is wrong with it is
// told until it is right.
func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	f := NewTokenFile(path)
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(word string) {
		t.Helper()
		_, err := f.GetRequestMetadata(context.Background())
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), word) {
			t.Errorf("%v; want Unauthenticated with %q", err, word)
		}
		if problems := f.Problems(); len(problems) != 1 || !strings.Contains(problems[0], "--token-file") || !strings.Contains(problems[0], word) {
			t.Errorf("problems %q; want one that names the flag and %q", problems, word)
		}
	}
	shown := func(want string) {
		t.Helper()
		got, err := f.GetRequestMetadata(context.Background())
		if err != nil || got[access.Header] != "Bearer "+want || len(f.Problems()) != 0 {
			t.Errorf("%v, %v, problems %q; want %s shown", got, err, f.Problems(), want)
		}
	}
	refused("no such file")
	write("a.b.c\n")
	shown("a.b.c")
	write("d.e.f")
	shown("d.e.f")
	write("\n")
	refused("empty")
	write("two words")
	refused("holds no token")
	write(strings.Repeat("x", longestToken+1))
	refused("holds no token")
	write("g")
	shown("g")
	if !f.RequireTransportSecurity() {
		t.Error("the token would be sent in plaintext")
	}
}
