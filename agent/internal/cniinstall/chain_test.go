// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/millrace-project/millrace/agent/internal/cniplugin"
)

var update = flag.Bool("update", false, "write the golden files anew")

var entry = cniplugin.Entry{Type: cniplugin.Type, Socket: "/run/millrace/agent.sock", AddTimeout: "20s", DelTimeout: "5s"}

// plugins returns a list's plugins as a CNI library sees them, and the rest.
func plugins(t *testing.T, text []byte) (list []any, rest map[string]any) {
	t.Helper()
	if _, err := libcni.ConfListFromBytes(text); err != nil {
		t.Fatalf("a CNI library refuses it: %v\n%s", err, text)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&rest); err != nil {
		t.Fatal(err)
	}
	list, _ = rest["plugins"].([]any)
	delete(rest, "plugins")
	return list, rest
}

// TestChain chains into configurations as they are found, and out of them again.
func TestChain(t *testing.T) {
	for _, name := range []string{"ptp", "bridge", "calico", "flannel", "cilium"} {
		t.Run(name, func(t *testing.T) {
			in, err := os.ReadFile(filepath.Join("testdata", name, "in"))
			if err != nil {
				t.Fatal(err)
			}
			out, err := chain(in, entry)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, out)
			before, rest := plugins(t, in)
			after, now := plugins(t, out)
			if !reflect.DeepEqual(rest, now) || !reflect.DeepEqual(before, after[:len(after)-1]) || len(after) != len(before)+1 {
				t.Errorf("something else changed:\n%s", out)
			}
			again, err := chain(out, entry)
			if err != nil || !bytes.Equal(again, out) {
				t.Errorf("chained twice: %v\n%s", err, again)
			}
			back, err := unchain(out)
			if err != nil || !bytes.Equal(back, in) {
				t.Errorf("taken out again: %v\n%s\nwas\n%s", err, back, in)
			}
			// Another socket: the entry follows, where it is.
			other := entry
			other.Socket = "/run/other.sock"
			moved, err := chain(append([]byte{}, out...), other)
			if err != nil || bytes.Count(moved, []byte(cniplugin.Type)) != bytes.Count(out, []byte(cniplugin.Type)) || !bytes.Contains(moved, []byte("/run/other.sock")) {
				t.Errorf("with another socket: %v\n%s", err, moved)
			}
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name, "out")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant (-update writes it anew)\n%s", got, want)
	}
}

// TestChainMended puts a list right that the plugin stands in wrongly.
func TestChainMended(t *testing.T) {
	ours := `{"type":"millrace-cni","socket":"/run/millrace/agent.sock","addTimeout":"20s","delTimeout":"5s"}`
	for name, list := range map[string]string{
		"first": ours + `, {"type": "ptp"}`, "twice": `{"type": "ptp"}, ` + ours + `, ` + ours,
		"first and last": ours + `,{"type": "ptp"},` + ours, "old": `{"type": "ptp"}, {"type": "millrace-cni", "socket": "/old"}`,
		"first, thrice": ours + "," + ours + `, {"type": "ptp"}, ` + ours,
	} {
		out, err := chain([]byte(`{"cniVersion": "1.0.0", "name": "n", "plugins": [`+list+`]}`), entry)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, _ := plugins(t, out); len(got) != 2 || got[0].(map[string]any)["type"] != "ptp" {
			t.Errorf("%s: %s", name, out)
		}
		if !bytes.Contains(out, []byte(ours)) {
			t.Errorf("%s: the entry is not as it should be: %s", name, out)
		}
	}
	// A plugin that was chained behind this one stays there.
	kept := `{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "ptp"}, ` + ours + `, {"type": "istio-cni"}]}`
	if out, err := chain([]byte(kept), entry); err != nil || string(out) != kept {
		t.Errorf("%v: %s", err, out)
	}
}

// TestChainRefuses leaves alone what it cannot chain into, and says why.
func TestChainRefuses(t *testing.T) {
	for text, want := range map[string]string{
		``:                                     "no JSON object",
		`[]`:                                   "no JSON object",
		`{"cniVersion": "1.0.0", "name": "n"`:  "EOF",
		`{"cniVersion": "1.0.0", "name": "n"}`: "field plugins",
		`{"cniVersion": "1.0.0", "name": "n", "plugins": {}}`:                                         "field plugins: it is no list",
		`{"cniVersion": "1.0.0", "name": "n", "plugins": []}`:                                         "field plugins: the list is empty",
		`{"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}`:                                       "field plugins[0].type",
		`{"cniVersion": "1.0.0", "name": "n", "plugins": ["ptp"]}`:                                    "field plugins[0]",
		`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "ptp"}]} {}`:                       "follows",
		`{"cniVersion": 1, "name": "n", "plugins": [{"type": "ptp"}]}`:                                "field cniVersion",
		`{"cniVersion": "0.2.0", "name": "n", "plugins": [{"type": "ptp"}]}`:                          `"0.2.0"`,
		`{"name": "n", "plugins": [{"type": "ptp"}]}`:                                                 `field cniVersion: ""`,
		`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "millrace-cni"}]}`:                 "no other plugin",
		`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}], "plugins": [{"type":"b"}]}`: "twice",
	} {
		if out, err := chain([]byte(text), entry); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q; made %s", text, err, want, out)
		}
	}
	var invalid *invalidError
	_, err := chain([]byte(`{"cniVersion": "0.2.0", "name": "n", "plugins": [{"type": "ptp"}]}`), entry)
	if errors.As(err, &invalid) {
		t.Error("a list of an old version counts as none, but container runtimes use it")
	}
}

// TestWrap makes a list of the configuration of one plugin.
func TestWrap(t *testing.T) {
	in, err := os.ReadFile(filepath.Join("testdata", "single", "in"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := wrap(in, entry)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "single", out)
	list, rest := plugins(t, out)
	var single map[string]any
	if err := json.Unmarshal(in, &single); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || !reflect.DeepEqual(list[0], any(single)) || rest["name"] != "podman" || rest["cniVersion"] != "0.4.0" {
		t.Errorf("%v, %v", list, rest)
	}
	for text, want := range map[string]string{
		`{`:                                      "JSON",
		`{"cniVersion": "0.4.0", "name": "n"}`:   "field type",
		`{"cniVersion": "0.4.0", "type": "ptp"}`: "field name",
		`{"cniVersion": "0.1.0", "type": "ptp", "name": "n"}`:          "field cniVersion",
		`{"cniVersion": "0.4.0", "name": "n", "plugins": []}`:          "field plugins",
		`{"cniVersion": "0.4.0", "name": "n", "type": "millrace-cni"}`: "field type",
	} {
		if _, err := wrap([]byte(text), entry); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
