// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// buildProgram builds this directory's bpfmount: static, or linked to a C
// library's loader if external is set.
func buildProgram(t *testing.T, arch string, external bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bpfmount")
	args := []string{"build", "-trimpath", "-o", path}
	env := append(os.Environ(), "GOWORK=off", "GOARCH="+arch, "CGO_ENABLED=0")
	if external {
		args = append(args, "-buildmode=pie", "-ldflags=-linkmode=external")
		env = append(env, "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "./bpfmount")...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	tr := tar.NewReader(r)
	for {
		header, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" || header.ModTime.Unix() != 1700000000 {
			t.Errorf("%s: header depends on the machine: %+v", header.Name, header)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = content
	}
}

func decode[T any](t *testing.T, content []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(content, &v); err != nil {
		t.Fatalf("%v in %s", err, content)
	}
	return v
}

// blob finds a descriptor's content and holds it to digest and size.
func blob(t *testing.T, files map[string][]byte, d descriptor, mediaType string) []byte {
	t.Helper()
	content, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
	if !ok {
		t.Fatalf("no blob %s among %d files", d.Digest, len(files))
	}
	if digestOf(content) != d.Digest || int64(len(content)) != d.Size || d.MediaType != mediaType {
		t.Fatalf("blob of %d bytes with digest %s is described as %+v", len(content), digestOf(content), d)
	}
	return content
}

func writeImage(t *testing.T, program string) (path, printed string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "images", "x.tar")
	var out bytes.Buffer
	err := run([]string{
		"--name", "millrace-x:v1", "--out", path, "--created", "1700000000", "--user", "1234:1234",
		"--label", "org.opencontainers.image.version=v1", program,
	}, &out)
	if err != nil {
		t.Fatal(err)
	}
	return path, out.String()
}

// TestArchive follows every pointer of an archive and runs what it finds.
func TestArchive(t *testing.T) {
	program := buildProgram(t, runtime.GOARCH, false)
	path, printed := writeImage(t, program)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, bytes.NewReader(raw))
	if got := string(files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout is %q", got)
	}
	idx := decode[index](t, files["index.json"])
	if idx.SchemaVersion != 2 || len(idx.Manifests) != 1 {
		t.Fatalf("index is %+v", idx)
	}
	top := idx.Manifests[0]
	if !strings.Contains(printed, top.Digest) {
		t.Errorf("printed %q, not the digest %s", printed, top.Digest)
	}
	if top.Annotations["io.containerd.image.name"] != "millrace-x:v1" || top.Platform.Architecture != runtime.GOARCH {
		t.Errorf("index names %+v", top)
	}
	man := decode[manifest](t, blob(t, files, top, mediaManifest))
	config := decode[imageConfig](t, blob(t, files, man.Config, mediaConfig))
	if config.Config.User != "1234:1234" || !slices.Equal(config.Config.Entrypoint, []string{"/bpfmount"}) ||
		config.OS != "linux" || config.Created != "2023-11-14T22:13:20Z" ||
		config.Config.Labels["org.opencontainers.image.version"] != "v1" {
		t.Errorf("config is %+v", config)
	}
	if len(man.Layers) != 1 {
		t.Fatalf("manifest is %+v", man)
	}
	zr, err := gzip.NewReader(bytes.NewReader(blob(t, files, man.Layers[0], mediaLayer)))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(config.RootFS.DiffIDs, []string{digestOf(layer)}) {
		t.Errorf("layer is %s, config says %v", digestOf(layer), config.RootFS.DiffIDs)
	}
	root := untar(t, bytes.NewReader(layer))
	runs(t, root["bpfmount"])

	again, _ := writeImage(t, program)
	if second, err := os.ReadFile(again); err != nil || !bytes.Equal(raw, second) {
		t.Errorf("the same input gave another archive (%v)", err)
	}
}

// runs starts a program and expects its usage error.
func runs(t *testing.T, content []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "allowed is one argument") {
		t.Errorf("the program in the image does not run: %v: %s", err, out)
	}
}

// TestRefused: what could not start on an empty base is not packed, and a
// failed write leaves nothing.
func TestRefused(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n# Longer than the header of a program is.\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"not for":           {buildProgram(t, other, false)},
		"dynamic loader":    {buildProgram(t, runtime.GOARCH, true)},
		"bad magic":         {text},
		"no such file":      {"/nonesuch"},
		"allowed are amd64": {"--arch", "mips", text},
	} {
		dir := t.TempDir()
		out := filepath.Join(dir, "x.tar")
		err := run(append([]string{"--name", "x:v1", "--out", out}, args...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v; want one with %q", args, err, want)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%v: left %v", args, left)
		}
	}
	if err := run([]string{"--out", "x"}, io.Discard); err == nil {
		t.Error("an image without name and programs is no error")
	}
}

// TestBase: programs lie above a root filesystem, and one archive gives an
// image several names.
func TestBase(t *testing.T) {
	var base bytes.Buffer
	tw := tar.NewWriter(&base)
	if err := tw.WriteHeader(&tar.Header{Name: "bin/sh", Mode: 0o755, Size: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write([]byte("shell")); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	basePath, out := filepath.Join(dir, "base.tar"), filepath.Join(dir, "x.tar")
	if err := os.WriteFile(basePath, base.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	err := run([]string{"--name", "a:v1", "--name", "b:v2", "--out", out, "--created", "1700000000", "--base", basePath,
		"--argument", "wait", buildProgram(t, runtime.GOARCH, false)}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, bytes.NewReader(raw))
	idx := decode[index](t, files["index.json"])
	if len(idx.Manifests) != 2 || idx.Manifests[0].Digest != idx.Manifests[1].Digest ||
		idx.Manifests[0].Annotations["io.containerd.image.name"] != "a:v1" || idx.Manifests[1].Annotations["io.containerd.image.name"] != "b:v2" {
		t.Fatalf("index is %+v", idx)
	}
	man := decode[manifest](t, blob(t, files, idx.Manifests[0], mediaManifest))
	config := decode[imageConfig](t, blob(t, files, man.Config, mediaConfig))
	if !slices.Equal(config.Config.Cmd, []string{"wait"}) || len(man.Layers) != 2 || len(config.RootFS.DiffIDs) != 2 {
		t.Fatalf("config is %+v of layers %+v", config, man.Layers)
	}
	// The base is the lower one, as it was.
	if config.RootFS.DiffIDs[0] != digestOf(base.Bytes()) {
		t.Errorf("the lower layer is %s, the base %s", config.RootFS.DiffIDs[0], digestOf(base.Bytes()))
	}
}
