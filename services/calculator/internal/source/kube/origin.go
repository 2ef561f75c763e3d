// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net"
	"os"
	"strings"

	"k8s.io/client-go/rest"
)

// The environment variables of every pod that tell where the API server is. The
// ConfigMap kubernetes-services-endpoint has two of the same names, which the
// calculator's Deployment puts into its environment with a prefix: by that, what
// an operator has said is told from what Kubernetes and the Deployment say.
const (
	envHost = "KUBERNETES_SERVICE_HOST"
	envPort = "KUBERNETES_SERVICE_PORT"

	endpointConfigMap = "kubernetes-services-endpoint"
	endpointPrefix    = "KUBERNETES_SERVICES_ENDPOINT_"
)

// Origin tells from where it is known where the API server is.
func Origin(kubeconfig string) string {
	switch {
	case kubeconfig != "":
		return "kubeconfig " + kubeconfig
	case os.Getenv(endpointPrefix+envHost) != "" || os.Getenv(endpointPrefix+envPort) != "":
		return "ConfigMap " + endpointConfigMap
	default:
		return "environment variable " + envHost
	}
}

// inCluster is how pods reach the API server, at the address that the ConfigMap
// has, if there is one.
func inCluster() (*rest.Config, error) {
	host, port := os.Getenv(endpointPrefix+envHost), os.Getenv(endpointPrefix+envPort)
	if host == "" && port == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no kubeconfig is given and this is no pod: %w", err)
		}
		return config, nil
	}
	for key, value := range map[string]string{envHost: host, envPort: port} {
		if value == "" || strings.ContainsAny(value, "/ \t\n") || key == envHost && strings.Contains(value, "]") {
			return nil, fmt.Errorf("ConfigMap %s, key %s: %q must be a host's name or address, or a port, and the other key needs one too", endpointConfigMap, key, value)
		}
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return nil, fmt.Errorf("ConfigMap %s, key %s: %q is no port", endpointConfigMap, envPort, port)
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the pod's credentials: %w", err)
	}
	config.Host = "https://" + net.JoinHostPort(host, port)
	return config, nil
}
