// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"
	"k8s.io/client-go/util/connrotation"
)

const (
	// silence is how long a connection to the API server may be silent before
	// it is asked whether it still works, pingTimeout how long it may take to
	// answer. Both together bound how long watches stay frozen whose
	// connection is open but carries nothing; client-go's own are 30 s and
	// 15 s.
	silence     = 10 * time.Second
	pingTimeout = 5 * time.Second
	// dialTimeout bounds an attempt to connect.
	dialTimeout = 10 * time.Second
)

// Config returns how to reach the API server: as the file says, or as pods do
// if there is none.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		if config, err = inCluster(); err != nil {
			return nil, err
		}
	} else if config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", kubeconfig, err)
	}
	config.UserAgent = userAgent
	// Far cheaper to decode than JSON, on both sides.
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return config, nil
}

// connection is a client with connections of its own, which can be cut.
type connection struct {
	kubernetes.Interface
	dialer *connrotation.Dialer
	// uses counts who uses it at present.
	uses atomic.Int32
}

// use takes a client into use whose connections are not kept: what is to find
// out about connections that are frozen must not have one. The function that
// is returned ends the use, and the last one closes the connections.
func (c *connection) use() (end func()) {
	c.uses.Add(1)
	return func() {
		if c.uses.Add(-1) == 0 {
			c.cut()
		}
	}
}

// connect makes a client that shares its connections with no other.
func connect(config *rest.Config) (*connection, error) {
	own := rest.CopyConfig(config)
	dial := own.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: silence}).DialContext
	}
	c := &connection{dialer: connrotation.NewDialer(connrotation.DialFunc(dial))}
	own.Dial = c.dialer.DialContext
	if file := own.BearerTokenFile; file != "" {
		// Read again once a minute, and at once after it was refused, which
		// client-go would not do by itself.
		own.BearerToken, own.BearerTokenFile = "", ""
		own.Wrap(transport.ResettableTokenSourceWrapTransport(transport.NewCachedFileTokenSource(file)))
	}
	var err error
	if c.Interface, err = kubernetes.NewForConfig(own); err != nil {
		return nil, fmt.Errorf("making a client for %s: %w", config.Host, err)
	}
	return c, nil
}

// NewClient returns a client for questions that are no watches. It does not pace
// itself: whoever asks bounds how much is asked at a time.
func NewClient(config *rest.Config) (kubernetes.Interface, error) {
	own := rest.CopyConfig(config)
	own.QPS = -1
	c, err := connect(own)
	if err != nil {
		return nil, err
	}
	return c.Interface, nil
}

// cut closes the connections. What was asked through them fails, and what is
// asked next connects anew.
func (c *connection) cut() {
	if c.dialer != nil {
		c.dialer.CloseAll()
	}
}

// boundSilence sets how soon a connection that carries nothing is given up.
// client-go reads that from the environment and from nowhere else; what an
// operator has set there counts.
func boundSilence() error {
	for name, bound := range map[string]time.Duration{
		"HTTP2_READ_IDLE_TIMEOUT_SECONDS": silence,
		"HTTP2_PING_TIMEOUT_SECONDS":      pingTimeout,
	} {
		if _, set := os.LookupEnv(name); set {
			continue
		}
		if err := os.Setenv(name, strconv.Itoa(int(bound.Seconds()))); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	return nil
}
