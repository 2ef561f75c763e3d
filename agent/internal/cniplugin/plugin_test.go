// SPDX-License-Identifier: Apache-2.0

package cniplugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// TestMain is the plugin if a test calls it as one.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(Main("test"))
	}
	os.Exit(m.Run())
}

const pod1 = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=u"

// conf is a configuration with the previous result, which may be empty, and more
// fields.
func conf(result, more string) string {
	text := `{"cniVersion": "1.0.0", "name": "pods", "type": "millrace-cni", "addTimeout": "100ms", "delTimeout": "100ms"`
	if result != "" {
		text += `, "prevResult": ` + result
	}
	return text + more + "}"
}

const good = `{"cniVersion": "1.0.0", "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}],
	"ips": [{"address": "10.1.0.5/24", "interface": 1}, {"address": "fd01::5/64", "interface": 1}]}`

// call runs the plugin in a process of its own, as container runtimes do.
func call(t *testing.T, command, args, stdin string) (string, *types.Error) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_NETNS=/does/not/exist", "CNI_IFNAME=eth0", "CNI_ARGS=" + args, "CNI_PATH=/x"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err == nil {
		return out.String(), nil
	}
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	failure := &types.Error{}
	if err := json.Unmarshal(out.Bytes(), failure); err != nil {
		t.Fatalf("an error that is no JSON: %q", out.String())
	}
	return "", failure
}

// TestErrors gives the plugin what it cannot use.
func TestErrors(t *testing.T) {
	socket := `, "socket": "` + filepath.Join(t.TempDir(), "agent.sock") + `"`
	for name, c := range map[string]struct {
		command, args, stdin string
		code                 uint
		message              string
	}{
		"no JSON":              {"ADD", pod1, `{`, types.ErrDecodingFailure, ""},
		"old version":          {"ADD", pod1, strings.Replace(conf(good, socket), "1.0.0", "0.2.0", 1), types.ErrIncompatibleCNIVersion, "incompatible"},
		"new version":          {"ADD", pod1, strings.Replace(conf(good, socket), "1.0.0", "9.0.0", 1), types.ErrIncompatibleCNIVersion, "incompatible"},
		"no socket":            {"ADD", pod1, conf(good, ""), types.ErrInvalidNetworkConfig, "field socket"},
		"relative socket":      {"ADD", pod1, conf(good, `, "socket": "x"`), types.ErrInvalidNetworkConfig, `"x"`},
		"bad timeout":          {"ADD", pod1, strings.Replace(conf(good, socket), "100ms", "soon", 1), types.ErrInvalidNetworkConfig, "field addTimeout"},
		"no result":            {"ADD", pod1, conf("", socket), types.ErrInvalidNetworkConfig, "no prevResult"},
		"bad result":           {"ADD", pod1, conf(`{"ips": 5}`, socket), types.ErrInvalidNetworkConfig, "prevResult"},
		"result of no address": {"ADD", pod1, conf(`{"cniVersion": "1.0.0", "ips": []}`, socket), types.ErrInvalidNetworkConfig, "no address"},
		"result of nothing":    {"ADD", pod1, conf(strings.Replace(good, `"interface": 1`, `"interface": 7`, 1), socket), types.ErrInvalidNetworkConfig, "ips[0].interface"},
		"no arguments":         {"ADD", "", conf(good, socket), types.ErrInvalidEnvironmentVariables, "K8S_POD_NAMESPACE is missing"},
		"no uid":               {"ADD", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", conf(good, socket), types.ErrInvalidEnvironmentVariables, "K8S_POD_UID is missing"},
		"argument twice":       {"ADD", pod1 + ";K8S_POD_UID=v", conf(good, socket), types.ErrInvalidEnvironmentVariables, "K8S_POD_UID is given twice"},
		"no pair":              {"ADD", pod1 + ";x", conf(good, socket), types.ErrInvalidEnvironmentVariables, `"x"`},
		"no namespace":         {"ADD", pod1, conf(good, socket), CodeSandbox, "/does/not/exist"},
		"check without":        {"CHECK", pod1, conf("", socket), types.ErrInvalidNetworkConfig, "no prevResult"},
		"collect without":      {"GC", "", strings.Replace(conf("", socket), "1.0.0", "1.1.0", 1), types.ErrTryAgainLater, "agent.sock"},
		"status without":       {"STATUS", "", strings.Replace(conf("", ""), "1.0.0", "1.1.0", 1), types.ErrInvalidNetworkConfig, "field socket"},
	} {
		_, failure := call(t, c.command, c.args, c.stdin)
		if failure == nil || failure.Code != c.code || !strings.Contains(failure.Msg, c.message) {
			t.Errorf("%s: %v, want code %d and %q", name, failure, c.code, c.message)
		}
	}
}

// TestWithoutAnAgent deletes, and tells its status, although nobody answers.
func TestWithoutAnAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	field := `, "socket": "` + socket + `"`
	started := time.Now()
	for _, stdin := range []string{conf(good, field), conf("", field), conf(`{"ips": 5}`, field)} {
		if _, failure := call(t, "DEL", pod1, stdin); failure != nil {
			t.Errorf("DEL: %v", failure)
		}
		text := ""
		left, _ := filepath.Glob(filepath.Join(socket+".deleted", "*.json"))
		if len(left) == 1 {
			content, err := os.ReadFile(left[0])
			if err != nil {
				t.Fatal(err)
			}
			text = string(content)
		}
		if !strings.Contains(text, `"c1"`) || strings.Contains(stdin, "fd01::5") && !strings.Contains(text, "fd01::5") {
			t.Errorf("left %v: %s", left, text)
		}
	}
	if took := time.Since(started); took < 300*time.Millisecond {
		t.Errorf("three deletions did not wait for the agent: %v", took)
	}
	if _, failure := call(t, "STATUS", "", strings.Replace(conf("", field), "1.0.0", "1.1.0", 1)); failure != nil {
		t.Errorf("STATUS: %v", failure)
	}
	out, failure := call(t, "VERSION", "", "")
	var versions struct{ SupportedVersions []string }
	if failure != nil || json.Unmarshal([]byte(out), &versions) != nil || !slices.Equal(versions.SupportedVersions, Versions) {
		t.Errorf("VERSION: %v %s", failure, out)
	}
}

// TestAddressesOfTheInterface leaves out what a result says of other interfaces.
func TestAddressesOfTheInterface(t *testing.T) {
	c, err := readConfig([]byte(conf(`{"cniVersion": "1.0.0", "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}, {"name": "net1", "sandbox": "/n"}],
		"ips": [{"address": "10.1.0.5/24", "interface": 1}, {"address": "10.9.0.5/24", "interface": 2}, {"address": "fd01::5/64"}]}`, `, "socket": "/s"`)))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.readResult(); err != nil {
		t.Fatal(err)
	}
	got, err := addressesIn(c.PrevResult, "eth0")
	if err != nil || !slices.Equal(got, []string{"10.1.0.5", "fd01::5"}) {
		t.Fatalf("%v, %v", got, err)
	}
	if c.addTimeout != 100*time.Millisecond {
		t.Errorf("timeout %v", c.addTimeout)
	}
}
