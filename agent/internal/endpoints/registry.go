// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/millrace-project/millrace/agent/internal/files"
)

// Registry is what the CNI plugin has told, in a directory that a later agent of
// the same boot reads. It is safe for concurrent use.
type Registry struct {
	dir  string
	boot string

	mu        sync.Mutex
	endpoints map[Attachment]Endpoint
	ended     map[string]Ended // by key
}

// record is the content of a file: an endpoint or one that has ended.
type record struct {
	// Boot is the boot that the record belongs to: devices and flows end with it.
	Boot     string    `json:"boot"`
	Endpoint *Endpoint `json:"endpoint,omitempty"`
	Ended    *Ended    `json:"ended,omitempty"`
}

// Open reads what an earlier agent of this boot kept in the directory, which
// need not exist. Files that cannot be used are removed and told of.
func Open(dir, boot string) (*Registry, []error) {
	r := &Registry{dir: dir, boot: boot, endpoints: map[Attachment]Endpoint{}, ended: map[string]Ended{}}
	list, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return r, nil
		}
		return r, []error{fmt.Errorf("read endpoints: %w", err)}
	}
	var failures []error
	for _, entry := range list {
		path := filepath.Join(dir, entry.Name())
		if !strings.HasSuffix(path, suffix) {
			os.Remove(path) //nolint:errcheck // half of a file; the next start tries again
			continue
		}
		var rec record
		content, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(content, &rec)
		}
		switch {
		case err != nil:
			failures = append(failures, fmt.Errorf("read endpoint %s: %w", path, err))
		case rec.Boot == boot && rec.Endpoint != nil:
			r.endpoints[rec.Endpoint.Attachment] = *rec.Endpoint
			continue
		case rec.Boot == boot && rec.Ended != nil:
			r.ended[rec.Ended.Key] = *rec.Ended
			continue
		}
		if err := os.Remove(path); err != nil {
			failures = append(failures, fmt.Errorf("remove endpoint of another boot: %w", err))
		}
	}
	return r, failures
}

const suffix = ".json"

// file returns the file of what is identified by the words.
func (r *Registry) file(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return filepath.Join(r.dir, fmt.Sprintf("%x%s", sum[:16], suffix))
}

func (r *Registry) endpointFile(a Attachment) string {
	return r.file("endpoint", a.Network, a.Container, a.Interface)
}

// write makes a file hold a record.
func (r *Registry) write(path string, rec record) error {
	rec.Boot = r.boot
	content, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	return files.Write(path, content)
}

// remove removes a file, and the directory if it was the last.
func (r *Registry) remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(r.endpoints) == 0 && len(r.ended) == 0 {
		os.Remove(r.dir) //nolint:errcheck // somebody else's file may be in it
	}
	return nil
}

// Put keeps an endpoint, in place of what was known of its attachment.
func (r *Registry) Put(e Endpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.write(r.endpointFile(e.Attachment), record{Endpoint: &e}); err != nil {
		return fmt.Errorf("keep endpoint %s: %w", e.Key(), err)
	}
	r.endpoints[e.Attachment] = e
	if _, ok := r.ended[e.Key()]; ok {
		return r.forgetEnded(e.Key())
	}
	return nil
}

// Remove forgets an endpoint. It is forgotten here even if its file stays.
func (r *Registry) Remove(a Attachment) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.endpoints, a)
	if err := r.remove(r.endpointFile(a)); err != nil {
		return fmt.Errorf("forget endpoint %s: %w", a, err)
	}
	return nil
}

// End keeps that a pod has ended which calculators still tell of.
func (r *Registry) End(e Ended) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended[e.Key] = e
	if err := r.write(r.file("ended", e.Key), record{Ended: &e}); err != nil {
		return fmt.Errorf("keep that pod %s has ended: %w", e.Key, err)
	}
	return nil
}

// ForgetEnded forgets those of the ended pods that the function does not want
// kept.
func (r *Registry) ForgetEnded(keep func(*Ended) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for key, e := range r.ended {
		if !keep(&e) {
			errs = append(errs, r.forgetEnded(key))
		}
	}
	return errors.Join(errs...)
}

func (r *Registry) forgetEnded(key string) error {
	delete(r.ended, key)
	if err := r.remove(r.file("ended", key)); err != nil {
		return fmt.Errorf("forget that pod %s has ended: %w", key, err)
	}
	return nil
}

// Get returns the endpoint of an attachment.
func (r *Registry) Get(a Attachment) (Endpoint, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.endpoints[a]
	return e, ok
}

// Known returns everything.
func (r *Registry) Known() Known {
	r.mu.Lock()
	defer r.mu.Unlock()
	var k Known
	for _, e := range r.endpoints {
		k.Endpoints = append(k.Endpoints, e)
	}
	slices.SortFunc(k.Endpoints, func(a, b Endpoint) int {
		return cmp.Or(a.Added.Compare(b.Added), cmp.Compare(a.Container, b.Container), cmp.Compare(a.Interface, b.Interface),
			cmp.Compare(a.Network, b.Network))
	})
	for _, e := range r.ended {
		k.Ended = append(k.Ended, e)
	}
	slices.SortFunc(k.Ended, func(a, b Ended) int { return cmp.Compare(a.Key, b.Key) })
	return k
}
