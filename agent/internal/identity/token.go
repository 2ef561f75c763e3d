// SPDX-License-Identifier: Apache-2.0

// Package identity is how the agent shows who it is, and how it finds out who
// calls it.
package identity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/millrace-project/millrace/proto/access"
	"github.com/millrace-project/millrace/proto/errorinfo"
)

// ReasonTokenFile is why a stream could not be opened whose token could not be
// read.
const ReasonTokenFile = "TOKEN_FILE"

// domain is ErrorInfo.domain of what the agent finds wrong with itself.
const domain errorinfo.Domain = "millrace.agent"

// longestToken bounds what is read, in case that the file is another one.
const longestToken = 16 << 10

// TokenFile shows calculators the token of a file. The kubelet writes a new one
// long before the old one expires, so the file is read for each call.
type TokenFile struct {
	path string

	mu      sync.Mutex
	problem string
}

var _ credentials.PerRPCCredentials = (*TokenFile)(nil)

// NewTokenFile returns the credentials of a file, which need not exist yet.
func NewTokenFile(path string) *TokenFile { return &TokenFile{path: path} }

// RequireTransportSecurity implements credentials.PerRPCCredentials: whoever
// hears a token can use it, so gRPC refuses to send it in plaintext.
func (f *TokenFile) RequireTransportSecurity() bool { return true }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (f *TokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := f.read()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.problem = ""
		return map[string]string{access.Header: access.Bearer(token)}, nil
	}
	f.problem = fmt.Sprintf("--token-file: %v; without a token calculators turn this agent away", err)
	return nil, domain.Errorf(codes.Unauthenticated, ReasonTokenFile, "read this agent's token: %v", err)
}

func (f *TokenFile) read() (string, error) {
	content, err := os.ReadFile(f.path)
	if err != nil {
		return "", err //nolint:wrapcheck // names the file
	}
	token := strings.TrimSpace(string(content))
	switch {
	case token == "":
		return "", fmt.Errorf("%s is empty", f.path)
	case len(token) > longestToken || strings.ContainsAny(token, " \t\r\n\x00"):
		return "", errors.New(f.path + " holds no token")
	}
	return token, nil
}

// Problems tells what was wrong with the file when it was last read.
func (f *TokenFile) Problems() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.problem == "" {
		return nil
	}
	return []string{f.problem}
}
