// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"
)

// Media types of the OCI image format.
const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// image is what to write.
type image struct {
	Names        list
	Architecture string
	User         string
	Created      time.Time
	Labels       map[string]string
	Programs     []string
	// Arguments are what the entry point gets unless it is given others.
	Arguments list
	// Base is an archive of a root filesystem below the programs, none if empty.
	Base string
}

// descriptor points to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type imageConfig struct {
	Created string `json:"created"`
	platform
	Config  runConfig `json:"config"`
	RootFS  rootFS    `json:"rootfs"`
	History []history `json:"history"`
}

type runConfig struct {
	User       string            `json:"User"`
	Entrypoint []string          `json:"Entrypoint"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

// elfMachines are the architectures that images are made for.
var elfMachines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// writeFile writes the archive, whole or not at all, and returns the digest of
// the image.
func (img *image) writeFile(name string) (digest string, err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".image-*")
	if err != nil {
		return "", err
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if digest, err = img.write(tmp); err != nil {
		return "", err
	}
	if err := tmp.Chmod(0o644); err != nil {
		return "", err
	}
	return digest, os.Rename(tmp.Name(), name)
}

func (img *image) write(w io.Writer) (string, error) {
	programs, err := img.programs()
	if err != nil {
		return "", err
	}
	layers := [][]byte{programs}
	if img.Base != "" {
		base, err := os.ReadFile(img.Base)
		if err != nil {
			return "", err
		}
		layers = [][]byte{base, programs}
	}
	man := manifest{SchemaVersion: 2, MediaType: mediaManifest}
	var blobs [][]byte
	fs := rootFS{Type: "layers"}
	for _, layer := range layers {
		packed, err := pack(layer)
		if err != nil {
			return "", err
		}
		blobs = append(blobs, packed)
		fs.DiffIDs = append(fs.DiffIDs, digestOf(layer))
		man.Layers = append(man.Layers, describe(mediaLayer, packed))
	}
	created := img.Created.Format(time.RFC3339)
	target := platform{Architecture: img.Architecture, OS: "linux"}
	config, err := json.Marshal(imageConfig{
		Created:  created,
		platform: target,
		Config: runConfig{
			User: img.User, Entrypoint: []string{"/" + path.Base(img.Programs[0])}, Cmd: img.Arguments, WorkingDir: "/", Labels: img.Labels,
		},
		RootFS:  fs,
		History: []history{{Created: created, CreatedBy: "millrace deploy/image"}},
	})
	if err != nil {
		return "", err
	}
	man.Config = describe(mediaConfig, config)
	manJSON, err := json.Marshal(man)
	if err != nil {
		return "", err
	}
	top := describe(mediaManifest, manJSON)
	top.Platform = &target
	all := index{SchemaVersion: 2, MediaType: mediaIndex}
	for _, name := range img.Names {
		// containerd takes the name from the first, other importers from the second.
		top.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
		all.Manifests = append(all.Manifests, top)
	}
	idx, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	tw := tar.NewWriter(w)
	if err := img.addFile(tw, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return "", err
	}
	if err := img.addFile(tw, "index.json", 0o644, idx); err != nil {
		return "", err
	}
	for _, blob := range append([][]byte{manJSON, config}, blobs...) {
		if err := img.addFile(tw, blobName(blob), 0o644, blob); err != nil {
			return "", err
		}
	}
	return top.Digest, tw.Close()
}

// programs makes the archive of the programs.
func (img *image) programs() ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, program := range img.Programs {
		content, err := os.ReadFile(program)
		if err != nil {
			return nil, err
		}
		if err := checkStatic(content, img.Architecture); err != nil {
			return nil, fmt.Errorf("%s: %w", program, err)
		}
		if err := img.addFile(tw, path.Base(program), 0o755, content); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// pack compresses a layer.
func pack(layer []byte) ([]byte, error) {
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(layer); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return zipped.Bytes(), nil
}

// addFile adds a file whose header depends on nothing of the machine.
func (img *image) addFile(tw *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: img.Created, Format: tar.FormatUSTAR,
	}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	_, err := tw.Write(content)
	return err
}

// checkStatic refuses a program that could not start on an empty base.
func checkStatic(content []byte, architecture string) error {
	want, ok := elfMachines[architecture]
	if !ok {
		return fmt.Errorf("architecture %q is not known; allowed are amd64 and arm64", architecture)
	}
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return err
	}
	if file.Machine != want {
		return fmt.Errorf("is a program for %s, not for %s", file.Machine, want)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return fmt.Errorf("is not static: it needs a dynamic loader")
		}
	}
	return nil
}

func describe(mediaType string, content []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: digestOf(content), Size: int64(len(content))}
}

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func blobName(content []byte) string { return "blobs/sha256/" + digestOf(content)[len("sha256:"):] }
