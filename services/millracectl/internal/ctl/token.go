// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/millrace-project/millrace/proto/access"
)

// token is shown with each call. It implements credentials.PerRPCCredentials.
type token string

func readToken(file string) (token, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading --token-file: %w", err)
	}
	text := strings.TrimSpace(string(content))
	if text == "" || strings.ContainsAny(text, " \t\r\n") {
		return "", fmt.Errorf("reading --token-file: %s holds no token", file)
	}
	return token(text), nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{access.Header: access.Bearer(string(t))}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t token) RequireTransportSecurity() bool { return true }
