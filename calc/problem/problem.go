// SPDX-License-Identifier: Apache-2.0

// Package problem describes what is wrong with objects. A problem never stops
// what else of the object is usable.
package problem

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/millrace-project/millrace/calc/model"
)

// Problem is one thing wrong with one object.
type Problem struct {
	// Object is the object that is to blame.
	Object model.Key
	// Field is the path of the field that is to blame
	// ("spec.ports[0].nodePort"); empty if none is.
	Field string
	// Message says what is wrong and what follows from it.
	Message string
}

// Compare orders problems by object, field and message.
func (p Problem) Compare(other Problem) int {
	return cmp.Or(p.Object.Compare(other.Object),
		cmp.Compare(p.Field, other.Field), cmp.Compare(p.Message, other.Message))
}

// String gives the problem in one line.
func (p Problem) String() string {
	if p.Field == "" {
		return p.Object.String() + ": " + p.Message
	}
	return p.Object.String() + ": " + p.Field + ": " + p.Message
}

// List collects the problems of one object.
type List struct {
	Object   model.Key
	problems []Problem
}

// Add appends a problem of the object.
func (l *List) Add(field, format string, args ...any) {
	l.problems = append(l.problems, Problem{l.Object, field, fmt.Sprintf(format, args...)})
}

// Sorted gives the problems in order, nil if there are none.
func (l *List) Sorted() []Problem {
	slices.SortFunc(l.problems, Problem.Compare)
	return slices.Clip(l.problems)
}
