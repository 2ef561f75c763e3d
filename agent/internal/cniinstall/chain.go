// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/cniplugin"
)

// span is a part of a text.
type span struct{ start, end int }

// list is a network configuration list with where its plugins stand. Everything
// else of it is somebody else's and stays as it is, byte by byte.
type list struct {
	text    []byte
	version string
	name    string
	plugins []span
	open    int // behind the [ of the plugins
}

// invalidError says that a file is no configuration. Container runtimes cannot use
// it either.
type invalidError struct{ err error }

func (e *invalidError) Error() string { return e.err.Error() }
func (e *invalidError) Unwrap() error { return e.err }

// parseList reads a configuration list.
func parseList(text []byte) (*list, error) {
	l := &list{text: text, open: -1}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("it is no JSON object"), notEnd(err))
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch key {
		case "plugins":
			if err := l.readPlugins(d); err != nil {
				return nil, err
			}
		case "cniVersion":
			err = d.Decode(&l.version)
		case "name":
			err = d.Decode(&l.name)
		default:
			var skipped json.RawMessage
			err = d.Decode(&skipped)
		}
		if err != nil {
			return nil, fmt.Errorf("field %v: %w", key, err)
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	switch {
	case l.open < 0:
		return nil, errors.New("field plugins: there is no list of plugins in the file itself")
	case len(l.plugins) == 0:
		return nil, errors.New("field plugins: the list is empty")
	}
	return l, nil
}

func notEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (l *list) readPlugins(d *json.Decoder) error {
	if l.open >= 0 {
		return errors.New("field plugins: it is given twice")
	}
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(errors.New("field plugins: it is no list"), notEnd(err))
	}
	l.open = int(d.InputOffset())
	for i := 0; d.More(); i++ {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return fmt.Errorf("field plugins[%d]: %w", i, err)
		}
		var head struct{ Type *string }
		if err := json.Unmarshal(raw, &head); err != nil {
			return fmt.Errorf("field plugins[%d]: %w", i, err)
		}
		if head.Type == nil || *head.Type == "" {
			return fmt.Errorf("field plugins[%d].type: it is missing", i)
		}
		end := int(d.InputOffset())
		l.plugins = append(l.plugins, span{end - len(raw), end})
	}
	_, err := d.Token()
	return err
}

// ours tells which plugins are this one.
func (l *list) ours() []int {
	var found []int
	for i, p := range l.plugins {
		var head struct{ Type string }
		if json.Unmarshal(l.text[p.start:p.end], &head) == nil && head.Type == cniplugin.Type {
			found = append(found, i)
		}
	}
	return found
}

// chain returns a list's text with the plugin in it, once. Where it stands already
// it stays: another plugin that was chained behind it wants to be there.
func chain(text []byte, entry cniplugin.Entry) ([]byte, error) {
	l, err := parseList(text)
	if err != nil {
		return nil, &invalidError{err}
	}
	if err := supported(l.version); err != nil {
		return nil, err
	}
	want, err := json.Marshal(entry)
	if err != nil {
		return nil, err
	}
	ours := l.ours()
	if len(ours) == 0 {
		return l.add(want), nil
	}
	if ours[0] == 0 {
		// It needs a result before it.
		if text = l.remove(ours...); text == nil {
			return nil, errors.New("field plugins: there is no other plugin than " + cniplugin.Type)
		}
		return chain(text, entry)
	}
	if len(ours) > 1 {
		return chain(l.remove(ours[1:]...), entry)
	}
	p := l.plugins[ours[0]]
	if equalJSON(l.text[p.start:p.end], want) {
		return text, nil
	}
	return slices.Concat(l.text[:p.start], want, l.text[p.end:]), nil
}

// add puts an entry behind the last plugin, indented as that is.
func (l *list) add(entry []byte) []byte {
	last := l.plugins[len(l.plugins)-1]
	before := l.open
	if n := len(l.plugins); n > 1 {
		before = l.plugins[n-2].end
	}
	space := l.text[before:last.start] // and a comma, if there are several
	if i := bytes.LastIndexByte(space, ','); i >= 0 {
		space = space[i+1:]
	}
	return slices.Concat(l.text[:last.end], []byte(","), space, entry, l.text[last.end:])
}

// unchain returns a list's text without the plugin, nil if there is no other.
func unchain(text []byte) ([]byte, error) {
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	if ours := l.ours(); len(ours) > 0 {
		return l.remove(ours...), nil
	}
	return text, nil
}

// remove takes plugins out; nil if none is left.
func (l *list) remove(indexes ...int) []byte {
	if len(indexes) == len(l.plugins) {
		return nil
	}
	text := slices.Clone(l.text)
	for _, i := range slices.Backward(indexes) {
		from, to := l.plugins[i].start, l.plugins[i].end
		if i > 0 {
			from = l.plugins[i-1].end
		} else {
			to = l.plugins[1].start
		}
		text = slices.Delete(text, from, to)
		if i == 0 {
			break // what follows was removed before
		}
	}
	return text
}

// supported refuses versions of the specification that the plugin does not speak:
// the container runtime would refuse every pod.
func supported(version string) error {
	if slices.Contains(cniplugin.Versions, version) {
		return nil
	}
	return fmt.Errorf("field cniVersion: %q is not among those that %s speaks, %v", version, cniplugin.Type, cniplugin.Versions)
}

// wrap makes a list of the configuration of a single plugin.
func wrap(text []byte, entry cniplugin.Entry) ([]byte, error) {
	var head struct {
		Version string          `json:"cniVersion"`
		Name    string          `json:"name"`
		Type    string          `json:"type"`
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, &invalidError{err}
	}
	switch {
	case head.Plugins != nil:
		return nil, &invalidError{errors.New("field plugins: the file is a list, but its name does not end with .conflist")}
	case head.Type == "":
		return nil, &invalidError{errors.New("field type: it is missing")}
	case head.Name == "":
		return nil, &invalidError{errors.New("field name: it is missing")}
	case head.Type == cniplugin.Type:
		return nil, errors.New("field type: there is no other plugin than " + cniplugin.Type)
	}
	if err := supported(head.Version); err != nil {
		return nil, err
	}
	own, err := json.Marshal(entry)
	if err != nil {
		return nil, err
	}
	version, err := json.Marshal(head.Version)
	if err != nil {
		return nil, err
	}
	name, err := json.Marshal(head.Name)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]byte("{\n  \"cniVersion\": "), version, []byte(",\n  \"name\": "), name,
		[]byte(",\n  \"plugins\": [\n    "), bytes.TrimSpace(text), []byte(",\n    "), own, []byte("\n  ]\n}\n")), nil
}

// equalJSON tells whether two texts mean the same.
func equalJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
