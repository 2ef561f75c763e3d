// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"fmt"
	"maps"
	"slices"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// files joins the objects of all manifests. Where several claim one object,
// the file that comes first by path gives it, whatever was read first.
type files struct {
	byPath map[string]*file
	owners map[model.Key][]string // paths in order; the first one's object is used
}

// file is what is in force of one manifest.
type file struct {
	objects map[model.Key]located
	// problems are those of the manifest itself.
	problems []problem.Problem
}

func newFiles() *files {
	return &files{byPath: map[string]*file{}, owners: map[model.Key][]string{}}
}

// set puts what was read of a manifest in force and returns the objects that
// may have changed by it, and the paths whose problems may have.
func (f *files) set(path string, m *manifest) (keys map[model.Key]struct{}, paths map[string]struct{}) {
	next := &file{objects: map[model.Key]located{}, problems: m.problems}
	for _, o := range m.objects {
		key := o.object.Key()
		if first, ok := next.objects[key]; ok {
			next.problems = append(next.problems, problem.Problem{Object: key,
				Message: fmt.Sprintf("%s#%d defines it again; document %d of the file is used", path, o.document, first.document)})
			continue
		}
		next.objects[key] = o
	}
	old := f.byPath[path]
	if old != nil && m.damaged {
		for key, o := range old.objects {
			if _, ok := next.objects[key]; !ok {
				next.objects[key] = o
			}
		}
	}
	return f.exchange(path, old, next)
}

// remove takes a manifest's objects away.
func (f *files) remove(path string) (keys map[model.Key]struct{}, paths map[string]struct{}) {
	return f.exchange(path, f.byPath[path], nil)
}

func (f *files) exchange(path string, old, next *file) (keys map[model.Key]struct{}, paths map[string]struct{}) {
	keys, paths = map[model.Key]struct{}{}, map[string]struct{}{path: {}}
	if old != nil {
		for key := range old.objects {
			keys[key] = struct{}{}
			f.disown(key, path)
		}
	}
	if next == nil {
		delete(f.byPath, path)
	} else {
		f.byPath[path] = next
		for key := range next.objects {
			keys[key] = struct{}{}
			owners := f.owners[key]
			at, _ := slices.BinarySearch(owners, path)
			f.owners[key] = slices.Insert(owners, at, path)
		}
	}
	for key := range keys {
		for _, owner := range f.owners[key] {
			paths[owner] = struct{}{}
		}
	}
	return keys, paths
}

func (f *files) disown(key model.Key, path string) {
	owners := f.owners[key]
	if at, ok := slices.BinarySearch(owners, path); ok {
		owners = slices.Delete(owners, at, at+1)
	}
	if len(owners) == 0 {
		delete(f.owners, key)
	} else {
		f.owners[key] = owners
	}
}

// object returns what is in force of an object; nil if there is none.
func (f *files) object(key model.Key) model.Object {
	owners := f.owners[key]
	if len(owners) == 0 {
		return nil
	}
	return f.byPath[owners[0]].objects[key].object
}

// problemsOf returns what is wrong with a manifest, its quarrels with others
// about objects included.
func (f *files) problemsOf(path string) []problem.Problem {
	in := f.byPath[path]
	if in == nil {
		return nil
	}
	problems := slices.Clone(in.problems)
	for _, key := range slices.SortedFunc(maps.Keys(in.objects), model.Key.Compare) {
		if first := f.owners[key][0]; first != path {
			problems = append(problems, problem.Problem{Object: key,
				Message: fmt.Sprintf("%s#%d defines it too; %s#%d is used, being first by name",
					path, in.objects[key].document, first, f.byPath[first].objects[key].document)})
		}
	}
	return problems
}
