// SPDX-License-Identifier: Apache-2.0

// Package deferred hands deletions of endpoints from the CNI plugin to an agent
// that is away. They wait in files beside the agent's socket; the agent does
// them when it starts, and before it adds another endpoint.
package deferred

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/millrace-project/millrace/agent/internal/files"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// Dir returns the directory of the deletions that wait for the agent of a
// socket. Both sides derive it from the socket alone.
func Dir(socket string) string { return socket + ".deleted" }

const suffix = ".json"

// Leave leaves a deletion for the agent of the socket.
func Leave(socket string, request *agentv1.DeleteEndpointRequest) error {
	content, err := protojson.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode deletion: %w", err)
	}
	dir := Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("leave deletion for the agent: %w", err)
	}
	a := request.GetAttachment()
	name := sha256.Sum256([]byte(a.GetNetwork() + "\x00" + a.GetContainerId() + "\x00" + a.GetInterface()))
	path := filepath.Join(dir, fmt.Sprintf("%x%s", name[:16], suffix))
	if err := files.Write(path, content); err != nil {
		return fmt.Errorf("leave deletion for the agent: %w", err)
	}
	return nil
}

// Take hands each waiting deletion to the function and removes it once that has
// succeeded. A file that is no deletion is removed and told of.
func Take(socket string, do func(*agentv1.DeleteEndpointRequest) error) error {
	dir := Dir(socket)
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read deletions that wait: %w", err)
	}
	var errs []error
	for _, entry := range list {
		if !strings.HasSuffix(entry.Name(), suffix) {
			continue // a plugin is writing it
		}
		path := filepath.Join(dir, entry.Name())
		content, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read deletion that waits: %w", err))
			continue
		}
		request := &agentv1.DeleteEndpointRequest{}
		options := protojson.UnmarshalOptions{DiscardUnknown: true}
		if err := options.Unmarshal(content, request); err != nil {
			errs = append(errs, fmt.Errorf("deletion %s cannot be read and is dropped: %w", path, err))
		} else if err := do(request); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("remove deletion that is done: %w", err))
		}
	}
	return errors.Join(errs...)
}
