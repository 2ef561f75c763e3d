// SPDX-License-Identifier: Apache-2.0

package cniplugin

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// Type is the plugin's type in configurations, and its file's name.
const Type = "millrace-cni"

// Defaults of the configuration.
const (
	DefaultAddTimeout = 20 * time.Second
	DefaultDelTimeout = 5 * time.Second
)

// Entry is what the agent writes into the node's CNI configuration.
type Entry struct {
	// Type is the plugin's.
	Type string `json:"type"`
	// Socket is the path of the agent's unix socket.
	Socket string `json:"socket"`
	// AddTimeout is how long ADD waits for an agent that does not answer, as Go
	// writes durations.
	AddTimeout string `json:"addTimeout,omitempty"`
	// DelTimeout is the same for DEL, which then succeeds all the same.
	DelTimeout string `json:"delTimeout,omitempty"`
}

// config is what the plugin reads from standard input.
type config struct {
	types.PluginConf
	// Socket is the path of the agent's.
	Socket string

	addTimeout, delTimeout time.Duration
}

// invalid makes an error of the configuration.
func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, "configuration of "+Type+": "+fmt.Sprintf(format, args...), "")
}

func readConfig(stdin []byte) (*config, error) {
	c, entry := &config{}, Entry{}
	for _, part := range []any{&c.PluginConf, &entry} {
		if err := json.Unmarshal(stdin, part); err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "configuration of "+Type+": "+err.Error(), "")
		}
	}
	c.Socket = entry.Socket
	if !filepath.IsAbs(c.Socket) {
		return nil, invalid("field socket: %q is not the absolute path of the agent's socket", c.Socket)
	}
	for _, field := range []struct {
		name, value string
		duration    *time.Duration
		usual       time.Duration
	}{
		{"addTimeout", entry.AddTimeout, &c.addTimeout, DefaultAddTimeout}, {"delTimeout", entry.DelTimeout, &c.delTimeout, DefaultDelTimeout},
	} {
		*field.duration = field.usual
		if field.value == "" {
			continue
		}
		d, err := time.ParseDuration(field.value)
		if err != nil || d <= 0 {
			return nil, invalid("field %s: %q is no duration such as 20s", field.name, field.value)
		}
		*field.duration = d
	}
	return c, nil
}

// readResult reads what the plugins before this one made.
func (c *config) readResult() error {
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return invalid("field prevResult: %v", err)
	}
	return nil
}

// pod is what container runtimes tell of the pod by CNI_ARGS.
type pod struct{ namespace, name, uid string }

// podOf reads CNI_ARGS, "KEY=VALUE;KEY=VALUE".
func podOf(text string) (pod, error) {
	bad := func(format string, args ...any) (pod, error) {
		return pod{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+fmt.Sprintf(format, args...), "")
	}
	var p pod
	wanted := map[string]*string{"K8S_POD_NAMESPACE": &p.namespace, "K8S_POD_NAME": &p.name, "K8S_POD_UID": &p.uid}
	seen := map[string]bool{}
	for _, pair := range strings.Split(text, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return bad("%q is not of the form KEY=VALUE", pair)
		}
		field := wanted[key]
		if field == nil {
			continue // others are for other plugins
		}
		if seen[key] {
			return bad("%s is given twice", key)
		}
		seen[key], *field = true, value
	}
	for _, key := range []string{"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"} {
		if *wanted[key] == "" {
			return bad("%s is missing: the plugin works for pods of Kubernetes alone", key)
		}
	}
	return p, nil
}
