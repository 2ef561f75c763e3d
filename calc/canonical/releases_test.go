// SPDX-License-Identifier: Apache-2.0

package canonical_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/calc/canonical"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// releases is where each release's fixtures are.
const releases = "../../proto/testdata/releases"

// release is set by `make release-fixtures`.
var release = flag.String("release", "", "write the fixtures of this release instead of testing those that are there")

// golden is a resource with what a release made of it.
type golden struct {
	// What tells the resources of a release apart.
	What     string          `json:"what"`
	Schema   uint32          `json:"schema"`
	Version  string          `json:"version"`
	Encoding string          `json:"encoding"`
	Resource json.RawMessage `json:"resource"`
}

func newGolden(t *testing.T, what string, resource *dataplanev1.Resource) golden {
	t.Helper()
	text, err := protojson.Marshal(resource)
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer // protojson's spaces are random on purpose
	if err := json.Compact(&compact, text); err != nil {
		t.Fatal(err)
	}
	return golden{
		What: what, Schema: canonical.Schema(resource.GetName().GetType()), Version: fmt.Sprintf("%#016x", canonical.Version(resource)),
		Encoding: hex.EncodeToString(canonical.Encoding(resource)), Resource: compact.Bytes(),
	}
}

// TestReleases computes the versions of resources as every release of the
// fixtures did. Where one differs, the upgrade sends all resources of its type
// anew, and an agent that meets calculators of both releases gets them at each
// reconnect.
func TestReleases(t *testing.T) {
	t.Parallel()
	if *release != "" {
		writeRelease(t, filepath.Join(releases, *release, "versions.json"))
	}
	paths, err := filepath.Glob(filepath.Join(releases, "*", "versions.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no fixtures of releases in %s: %v", releases, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var goldens []golden
			if err := json.Unmarshal(data, &goldens); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if len(goldens) < 50 {
				t.Errorf("%s has %d resources only", path, len(goldens))
			}
			for _, g := range goldens {
				checkGolden(t, g)
			}
		})
	}
}

func checkGolden(t *testing.T, g golden) {
	t.Helper()
	resource := &dataplanev1.Resource{}
	if err := protojson.Unmarshal(g.Resource, resource); err != nil {
		t.Errorf("%s: a resource of that release is not read any more: %v", g.What, err)
		return
	}
	resourceType := resource.GetName().GetType()
	schema, version := canonical.Schema(resourceType), fmt.Sprintf("%#016x", canonical.Version(resource))
	switch {
	case schema < g.Schema:
		t.Errorf("%s: the schema number of %s is %d, and was %d: it must only rise", g.What, resourceType, schema, g.Schema)
	case schema == g.Schema && version != g.Version:
		t.Errorf("%s: version %s, and was %s; encoding %x, and was %s.\n"+
			"If the change is not meant, undo it. If it is, raise the schema number of %s in calc/canonical/canonical.go: "+
			"an upgrade then sends all resources of this type anew, which is what a changed version does anyway, and no number stands for both encodings.",
			g.What, version, g.Version, canonical.Encoding(resource), g.Encoding, resourceType)
	case schema > g.Schema && version == g.Version:
		t.Errorf("%s: the schema number of %s rose from %d to %d and the version stayed %s: it must enter it",
			g.What, resourceType, g.Schema, schema, version)
	}
}

// writeRelease writes the fixtures of the present code: every type with all
// its fields, and with each single change to them.
func writeRelease(t *testing.T, path string) {
	t.Helper()
	var goldens []golden
	all := samples(t)
	for _, resourceType := range canonical.Types() {
		resource := all[resourceType]
		goldens = append(goldens, newGolden(t, resourceType.String(), resource))
		content := resource.ProtoReflect()
		field := content.WhichOneof(content.Descriptor().Oneofs().ByName("content"))
		mutations(content.Mutable(field).Message(), resourceType.String(), func(what string) {
			goldens = append(goldens, newGolden(t, what, proto.Clone(resource).(*dataplanev1.Resource)))
		})
	}
	var text bytes.Buffer
	text.WriteString("[\n")
	for i, g := range goldens {
		line, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			text.WriteString(",\n")
		}
		text.Write(line)
	}
	text.WriteString("\n]\n")
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
