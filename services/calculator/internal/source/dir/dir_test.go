// SPDX-License-Identifier: Apache-2.0

package dir_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
	"github.com/millrace-project/millrace/services/calculator/internal/source/dir"
)

// sink keeps the state that changes lead to.
type sink struct {
	mu       sync.Mutex
	objects  map[model.Key]model.Object
	problems map[string][]problem.Problem
	position uint64
	reached  uint64
	// reachedWith is how many objects there were when reached was told.
	reachedWith int
	applied     int
	backward    bool
	synced      chan struct{}
}

func (s *sink) Apply(changes []source.Change, position map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied++
	for _, change := range changes {
		if change.Object == nil {
			delete(s.objects, change.Key)
		} else {
			s.objects[change.Key] = change.Object
		}
	}
	if position["dir"] <= s.position {
		s.backward = true
	}
	s.position = position["dir"]
}

func (s *sink) Reached(position map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached, s.reachedWith = max(s.reached, position["dir"]), len(s.objects)
}

func (s *sink) Synced() { close(s.synced) }

func (s *sink) SetProblems(part string, problems []problem.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems[part] = problems
}

// directory is a directory that is being watched.
type directory struct {
	t      *testing.T
	path   string
	sink   *sink
	source *dir.Source
}

func watch(t *testing.T, path string) *directory {
	t.Helper()
	d := &directory{t: t, path: path, sink: &sink{objects: map[model.Key]model.Object{}, problems: map[string][]problem.Problem{}, synced: make(chan struct{})}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	d.source = dir.New(path, zap.NewNop())
	go func() { done <- d.source.Run(ctx, d.sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if d.sink.backward {
			t.Error("the position did not always grow")
		}
	})
	select {
	case <-d.sink.synced:
	case <-time.After(10 * time.Second):
		t.Fatal("the source has not synced")
	}
	return d
}

// write writes a file the careful way: aside, then renamed into place.
func (d *directory) write(name, content string) {
	d.t.Helper()
	aside := filepath.Join(d.path, "."+name+".tmp")
	if err := os.WriteFile(aside, []byte(content), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(d.path, name)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *directory) remove(name string) {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		d.t.Fatal(err)
	}
}

// services returns the services that are known, with their first port.
func (d *directory) services() string {
	d.sink.mu.Lock()
	defer d.sink.mu.Unlock()
	var list []string
	for _, key := range slices.SortedFunc(maps.Keys(d.sink.objects), model.Key.Compare) {
		if service, ok := d.sink.objects[key].(*model.Service); ok {
			list = append(list, fmt.Sprintf("%s/%s:%d", service.Namespace, service.Name, service.Ports[0].Port))
		}
	}
	return strings.Join(list, " ")
}

// problems returns all problems, in order.
func (d *directory) problems() string {
	d.sink.mu.Lock()
	defer d.sink.mu.Unlock()
	var list []string
	for _, part := range d.sink.problems {
		for _, one := range part {
			list = append(list, strings.ReplaceAll(one.String(), d.path+"/", ""))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

func (d *directory) eventually(what string, condition func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("it never came about that %s; services %q, problems:\n%s", what, d.services(), d.problems())
		}
	}
}

func (d *directory) expectServices(want string) {
	d.t.Helper()
	d.eventually("services are "+want, func() bool { return d.services() == want })
}

func (d *directory) expectProblems(want ...string) {
	d.t.Helper()
	d.eventually(fmt.Sprintf("there are the problems %q", want), func() bool {
		lines := []string{}
		if all := d.problems(); all != "" {
			lines = strings.Split(all, "\n")
		}
		if len(lines) != len(want) {
			return false
		}
		for i, line := range lines {
			if !strings.Contains(line, want[i]) {
				return false
			}
		}
		return true
	})
}

func service(name string, port int) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {ports: [{port: %d}]}\n", name, port)
}

func TestFollowsFiles(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "a.yaml"), []byte(service("a", 1)+"---\n"+service("b", 2)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := watch(t, path)
	if got := d.services(); got != "default/a:1 default/b:2" {
		t.Errorf("services %q when synced", got)
	}
	d.write("c.yml", service("c", 3))
	d.expectServices("default/a:1 default/b:2 default/c:3")
	d.write("a.yaml", service("a", 10))
	d.expectServices("default/a:10 default/c:3")
	d.remove("c.yml")
	d.expectServices("default/a:10")
	d.write("d.json", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"d","namespace":"x"},"spec":{"ports":[{"port":4}]}}
		{"apiVersion":"v1","kind":"Service","metadata":{"name":"e"},"spec":{"ports":[{"port":5}]}}`)
	d.expectServices("default/a:10 default/e:5 x/d:4")
	d.write("ignored.txt", service("f", 6))
	d.write("g.yaml", service("g", 7))
	d.expectServices("default/a:10 default/e:5 default/g:7 x/d:4")
	d.expectProblems()
}

func TestAllKindsAndLists(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("all.yaml", `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: ns}}
- {apiVersion: v1, kind: Node, metadata: {name: w1, namespace: ignored}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: ns}, spec: {nodeName: w1, containers: []}, status: {podIP: 10.1.0.1}}
---
---
apiVersion: v1
kind: ServiceList
items:
- {metadata: {name: s}, spec: {ports: [{port: 80, targetPort: web}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.1], nodeName: w1, conditions: {ready: true}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ignored}
`)
	d.expectServices("default/s:80")
	d.expectProblems()
	var keys []string
	for _, key := range slices.SortedFunc(maps.Keys(d.sink.objects), model.Key.Compare) {
		keys = append(keys, key.String())
	}
	if got, want := strings.Join(keys, ", "), "EndpointSlice default/s-1, Namespace ns, Node w1, Pod ns/p, Service default/s"; got != want {
		t.Errorf("objects %s, want %s", got, want)
	}
	slice := d.sink.objects[model.Key{Kind: model.KindEndpointSlice, Namespace: "default", Name: "s-1"}].(*model.EndpointSlice)
	if *slice.Ports[0].Port != 8080 || slice.Endpoints[0].NodeName != "w1" || !*slice.Endpoints[0].Ready || slice.Labels[model.LabelServiceName] != "s" {
		t.Errorf("slice %+v", slice)
	}
}

func TestWhatDoesNotParseKeepsWhatItHad(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("a.yaml", service("a", 1)+"---\n"+service("b", 2))
	d.write("c.yaml", service("c", 3))
	d.expectServices("default/a:1 default/b:2 default/c:3")

	// The second document is broken: b stays, a changes, the rest goes on.
	d.write("a.yaml", service("a", 10)+"---\nkind: [unclosed\n")
	d.expectServices("default/a:10 default/b:2 default/c:3")
	d.expectProblems("File a.yaml#2: is not valid YAML")
	d.write("c.yaml", service("c", 30))
	d.expectServices("default/a:10 default/b:2 default/c:30")

	// A wrong type names document, object and field.
	d.write("a.yaml", service("a", 11)+"---\n"+strings.Replace(service("b", 2), "port: 2", "port: two", 1))
	d.expectServices("default/a:11 default/b:2 default/c:30")
	d.expectProblems("File a.yaml#2: spec.ports[0].port: Service default/b: must be a number, not text")

	// Whole again, without b: now it goes.
	d.write("a.yaml", service("a", 12))
	d.expectServices("default/a:12 default/c:30")
	d.expectProblems()
}

func TestUnknownFieldIsNamedAndTheRestUsed(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("a.yaml", service("a", 1)+"---\n"+strings.Replace(service("b", 2), "port: 2", "port: 2, prot: TCP", 1))
	d.expectServices("default/a:1 default/b:2")
	d.expectProblems(`File a.yaml#2: spec.ports[0].prot: Service default/b: unknown field "spec.ports[0].prot"`)
}

func TestBadHeads(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("a.yaml", "metadata: {name: a}\n---\napiVersion: v1\nkind: Service\n---\napiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: x}\n---\njust text\n---\n"+service("ok", 1))
	d.expectServices("default/ok:1")
	d.expectProblems(
		"File a.yaml#1: kind: is missing",
		"File a.yaml#2: metadata.name: Service has no name",
		`File a.yaml#3: apiVersion: EndpointSlice default/x: "discovery.k8s.io/v1beta1" is not read, write "discovery.k8s.io/v1"`,
		"File a.yaml#4: must be a mapping, not text")
}

func TestDanglingLinkIsToldUntilItLeadsSomewhere(t *testing.T) {
	path, target := t.TempDir(), filepath.Join(t.TempDir(), "a")
	if err := os.Symlink(target, filepath.Join(path, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	d := watch(t, path)
	d.expectProblems("File a.yaml: is a link to " + target + ", which does not exist")
	if err := os.WriteFile(target, []byte(service("a", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	d.expectServices("default/a:1")
	d.expectProblems()
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	d.remove("a.yaml")
	d.expectServices("")
	d.expectProblems()
}

func TestWrongTypesAreToldInPlainWords(t *testing.T) {
	for text, want := range map[string]string{
		"spec: {ports: [{port: 1}, {port: eighty}]}":      "spec.ports[1].port: Service default/a: must be a number, not text",
		"spec: {ports: [{port: 1}, {port: 80000000000}]}": "spec.ports[1].port: Service default/a: must be a whole number of at most 32 bits, not 80000000000",
		"spec: {ports: 80}":                               "spec.ports: Service default/a: must be a list, not a number",
		"spec: {ports: [80]}":                             "spec.ports[0]: Service default/a: must be a mapping, not a number",
		"spec: {externalIPs: [x, 7]}":                     "spec.externalIPs[1]: Service default/a: must be text, not a number",
		"spec: {publishNotReadyAddresses: [no]}":          "spec.publishNotReadyAddresses: Service default/a: must be true or false, not a list",
		"spec: [x]":                                       "spec: Service default/a: must be a mapping, not a list",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			d := watch(t, t.TempDir())
			d.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"+text+"\n")
			d.expectProblems("File a.yaml#1: " + want)
		})
	}
}

func TestFirstFileByNameWins(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("m.yaml", service("a", 1)+"---\n"+service("a", 7))
	d.expectServices("default/a:1")
	d.expectProblems("Service default/a: m.yaml#2 defines it again; document 1 of the file is used")
	d.write("m.yaml", service("a", 1))
	d.write("z.yaml", service("a", 2))
	d.expectProblems("Service default/a: z.yaml#1 defines it too; m.yaml#1 is used")
	d.expectServices("default/a:1")
	d.write("b.yaml", service("a", 3))
	d.expectServices("default/a:3")
	d.expectProblems("Service default/a: m.yaml#1 defines it too; b.yaml#1", "Service default/a: z.yaml#1 defines it too; b.yaml#1")
	d.remove("b.yaml")
	d.remove("m.yaml")
	d.expectServices("default/a:2")
	d.expectProblems()
}

// Editors save by moving the file away and writing another.
func TestRenameDanceLosesNothing(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("a.yaml", service("a", 1))
	d.expectServices("default/a:1")
	lost := make(chan bool)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				lost <- false
				return
			default:
				if d.services() == "" {
					lost <- true
					return
				}
			}
		}
	}()
	for i := range 20 {
		file := filepath.Join(d.path, "a.yaml")
		if err := os.Rename(file, file+"~"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(service("a", 100+i)), 0o600); err != nil {
			t.Fatal(err)
		}
		d.expectServices(fmt.Sprintf("default/a:%d", 100+i))
	}
	close(stop)
	if <-lost {
		t.Error("the service was gone for a moment")
	}
}

// A file that is written piece by piece takes effect when it is whole.
func TestHalfWrittenFile(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("a.yaml", service("a", 1))
	d.expectServices("default/a:1")
	file, err := os.OpenFile(filepath.Join(d.path, "a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	half := "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{po"
	if _, err := file.WriteString(half); err != nil {
		t.Fatal(err)
	}
	d.expectProblems("File a.yaml#1: is not valid YAML")
	d.expectServices("default/a:1")
	if _, err := file.WriteString("rt: 2}]}\n"); err != nil {
		t.Fatal(err)
	}
	d.expectServices("default/a:2")
	d.expectProblems()
}

func TestDirectoryThatVanishesRemovesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "manifests")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	d := watch(t, path)
	d.write("a.yaml", service("a", 1))
	d.write("b.yaml", service("b", 2))
	d.expectServices("default/a:1 default/b:2")
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	d.expectProblems("cannot be watched")
	if got := d.services(); got != "default/a:1 default/b:2" {
		t.Errorf("services %q after the directory has gone", got)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	d.write("a.yaml", service("a", 3))
	d.expectServices("default/a:3")
	d.expectProblems()
}

// Kubernetes changes a mounted ConfigMap by swapping one hidden link.
func TestMountedVolume(t *testing.T) {
	path := t.TempDir()
	generation := func(i, port int) string {
		name := fmt.Sprintf("..%d", i)
		if err := os.Mkdir(filepath.Join(path, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, name, "a.yaml"), []byte(service("a", port)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name, filepath.Join(path, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(path, "..data_tmp"), filepath.Join(path, "..data")); err != nil {
			t.Fatal(err)
		}
		return name
	}
	generation(1, 1)
	if err := os.Symlink("..data/a.yaml", filepath.Join(path, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	d := watch(t, path)
	d.expectServices("default/a:1")
	generation(2, 2)
	d.expectServices("default/a:2")
}
