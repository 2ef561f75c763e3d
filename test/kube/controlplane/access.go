// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Clientset returns a client with every right.
func (c *ControlPlane) Clientset() (kubernetes.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.admin != nil {
		return c.admin, nil
	}
	cfg, err := c.UserConfig("admin", "system:masters")
	if err != nil {
		return nil, err
	}
	// Tests write many small objects, and nothing is to be gained by pacing.
	cfg.QPS, cfg.Burst = -1, -1
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	if c.admin, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return c.admin, nil
}

// UserConfig returns the configuration of a client that presents a certificate
// of the user. Its connections are opened in the control plane's namespace.
func (c *ControlPlane) UserConfig(user string, groups ...string) (*rest.Config, error) {
	p, err := c.ca.IssueClient(user, groups...)
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            "https://" + c.endpoint(),
		Dial:            dialNetNS(c.opts.NetNS),
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca.PEM(), CertData: p.Cert, KeyData: p.Key},
	}, nil
}

// Kubeconfig writes a kubeconfig for the user to a file of that name and
// returns its path. Server is the address ("127.0.0.1:6443") where the reader
// of the file reaches the API server, the API server's own if empty.
func (c *ControlPlane) Kubeconfig(server, user string, groups ...string) (string, error) {
	p, err := c.ca.IssueClient(user, groups...)
	if err != nil {
		return "", err
	}
	return c.writeKubeconfig(server, user, ByCertificate(p))
}

// TokenKubeconfig is like Kubeconfig for a service account, by a token that
// the API server issues for it. The service account must exist.
func (c *ControlPlane) TokenKubeconfig(ctx context.Context, server, namespace, serviceAccount string) (string, error) {
	token, err := c.Token(ctx, namespace, serviceAccount)
	if err != nil {
		return "", err
	}
	return c.writeKubeconfig(server, namespace+":"+serviceAccount, &clientcmdapi.AuthInfo{Token: token})
}

// TokenFileKubeconfig is like TokenKubeconfig, with the token in a file that
// its user reads again from time to time, as pods do.
func (c *ControlPlane) TokenFileKubeconfig(server, name, tokenFile string) (string, error) {
	return c.writeKubeconfig(server, name, &clientcmdapi.AuthInfo{TokenFile: tokenFile})
}

// Token issues a token for a service account.
func (c *ControlPlane) Token(ctx context.Context, namespace, serviceAccount string) (string, error) {
	return c.TokenFor(ctx, namespace, serviceAccount, "", nil)
}

// TokenFor is like Token, for an audience, the API server's if empty, and bound to
// a pod of the namespace if there is one, as the kubelet asks for them.
func (c *ControlPlane) TokenFor(ctx context.Context, namespace, serviceAccount, audience string, pod *corev1.Pod) (string, error) {
	admin, err := c.Clientset()
	if err != nil {
		return "", err
	}
	request := &authenticationv1.TokenRequest{}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	if pod != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	token, err := admin.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("issuing a token for %s/%s: %w", namespace, serviceAccount, err)
	}
	return token.Status.Token, nil
}

func (c *ControlPlane) writeKubeconfig(server, user string, auth *clientcmdapi.AuthInfo) (string, error) {
	if server == "" {
		server = c.endpoint()
	}
	name := strings.NewReplacer(":", "-", "/", "-").Replace(user + "@" + server)
	path := filepath.Join(c.dir, name+".kubeconfig")
	return path, WriteKubeconfig(path, "test", server, c.ca, user, auth)
}

// Kubectl runs kubectl with every right and returns what it printed. The error
// of a failure holds what it complained of.
func (c *ControlPlane) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	program, err := Binary("kubectl")
	if err != nil {
		return "", err
	}
	config := filepath.Join(c.dir, "kubectl.kubeconfig")
	if _, err := os.Stat(config); err != nil {
		path, err := c.Kubeconfig("", "kubectl", "system:masters")
		if err != nil {
			return "", err
		}
		if err := os.Rename(path, config); err != nil {
			return "", fmt.Errorf("placing kubectl's kubeconfig: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--kubeconfig=" + config, "--cache-dir=" + filepath.Join(c.dir, "kubectl-cache")}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err = inNetNS(c.opts.NetNS, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
