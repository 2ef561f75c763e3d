// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// ErrNoMap says that there is no map of the asked name.
var ErrNoMap = errors.New("there is no map of that name")

// Errors of [Dataplane.GrowMap], beside [ErrNoMap].
var (
	// ErrFixedSize says that a map keeps the size it was created with.
	ErrFixedSize = errors.New("this map keeps the size it was created with")
	// ErrNotLarger says that a map has the wanted size, or more.
	ErrNotLarger = errors.New("the map has room for as many already")
	// ErrMoving says that a map has not ended its last growth.
	ErrMoving = errors.New("the map's entries still move from its last growth")
)

// Domain is ErrorInfo.domain of everything that the agent's services refuse.
const Domain errorinfo.Domain = "millrace.agent.v1"

// Reasons of a ResourceError that any dataplane can give.
const (
	// ReasonUnknownType is for resources that this agent is too old for.
	ReasonUnknownType = "UNKNOWN_TYPE"
	// ReasonUndecodable is for resources whose bytes do not parse.
	ReasonUndecodable = "UNDECODABLE"
	// ReasonInvalid is for resources with a field that makes no sense.
	ReasonInvalid = "INVALID"
	// ReasonPortsOverlap is for settings that collide with the node's.
	ReasonPortsOverlap = "PORTS_OVERLAP"
	// ReasonDeviceNotFound is for endpoints without a device.
	ReasonDeviceNotFound = "DEVICE_NOT_FOUND"
	// ReasonAttach is for endpoints whose device took no programs.
	ReasonAttach = "ATTACH_FAILED"
	// ReasonMapWrite is for map writes that fail for now.
	ReasonMapWrite = "MAP_WRITE"
	// ReasonUnsupported is for settings that this agent cannot follow.
	ReasonUnsupported = "UNSUPPORTED"
)

// Errors keeps the present errors by resource.
type Errors struct {
	byName map[held.Name][]*dataplanev1.ResourceError
}

// Set replaces the errors of a resource.
func (e *Errors) Set(name held.Name, list ...*dataplanev1.ResourceError) {
	if len(list) == 0 {
		delete(e.byName, name)
		return
	}
	if e.byName == nil {
		e.byName = map[held.Name][]*dataplanev1.ResourceError{}
	}
	e.byName[name] = list
}

// Of returns the errors of a resource.
func (e *Errors) Of(name held.Name) []*dataplanev1.ResourceError { return e.byName[name] }

// Sorted returns all errors in the order of names.
func (e *Errors) Sorted() []*dataplanev1.ResourceError {
	names := make([]held.Name, 0, len(e.byName))
	for name := range e.byName {
		names = append(names, name)
	}
	slices.SortFunc(names, held.Name.Compare)
	var all []*dataplanev1.ResourceError
	for _, name := range names {
		all = append(all, e.byName[name]...)
	}
	return all
}

// NewError makes an error of a resource.
func NewError(name held.Name, reason, field, message string) *dataplanev1.ResourceError {
	return &dataplanev1.ResourceError{Name: name.Proto(), Reason: reason, Field: field, Message: message}
}
