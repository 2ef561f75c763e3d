// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"
	"testing"
)

// TestOrigin tells from where the API server's address is, in the order of what
// counts, and refuses half an address and what is none.
func TestOrigin(t *testing.T) {
	for _, c := range []struct {
		kubeconfig, host, port string
		origin, fault          string
	}{
		{"", "", "", "environment variable KUBERNETES_SERVICE_HOST", ""},
		{"", "api.example.com", "443", "ConfigMap kubernetes-services-endpoint", ""},
		{"/etc/k", "api.example.com", "443", "kubeconfig /etc/k", ""},
		{"", "api.example.com", "", "ConfigMap kubernetes-services-endpoint", "key KUBERNETES_SERVICE_PORT"},
		{"", "", "443", "ConfigMap kubernetes-services-endpoint", "key KUBERNETES_SERVICE_HOST"},
		{"", "https://api.example.com", "443", "ConfigMap kubernetes-services-endpoint", `"https://api.example.com"`},
		{"", "[fd00::1]", "443", "ConfigMap kubernetes-services-endpoint", `"[fd00::1]"`},
		{"", "fd00::1", "70000", "ConfigMap kubernetes-services-endpoint", `"70000"`},
	} {
		t.Setenv(endpointPrefix+envHost, c.host)
		t.Setenv(endpointPrefix+envPort, c.port)
		if got := Origin(c.kubeconfig); got != c.origin {
			t.Errorf("%+v: origin %q", c, got)
		}
		if c.fault == "" {
			continue
		}
		if _, err := Config("", "test"); err == nil || !strings.Contains(err.Error(), endpointConfigMap) || !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
