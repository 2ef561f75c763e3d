// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"strconv"

	"github.com/millrace-project/millrace/calc/backends"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/calc/services"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// serviceOf gives the state of a service name, made if need be.
func (g *Graph) serviceOf(name id) *serviceState {
	state := g.services[name]
	if state == nil {
		state = &serviceState{id: name}
		state.backends.Namespace, state.backends.Name = name.namespace, name.name
		g.services[name] = state
	}
	return state
}

func (g *Graph) setService(object *model.Service) {
	service, problems := services.Parse(object)
	g.putService(g.serviceOf(id{object.Namespace, object.Name}), true, service, problems)
}

func (g *Graph) deleteService(name id) {
	if state := g.services[name]; state != nil {
		g.putService(state, false, nil, nil)
	}
}

// putService gives a service its new state, and everyone whose claims it
// shares a new chance.
func (g *Graph) putService(state *serviceState, exists bool, service *services.Service, problems []problem.Problem) {
	if state.service != nil {
		g.claims.Remove(state.service)
	}
	if service != nil {
		g.claims.Add(service)
	}
	if state.exists != exists {
		state.exists = exists
		for name := range state.slices {
			g.reportSlice(name, g.slices[name])
		}
	}
	state.service, state.problems = service, problems
	g.touch(state)
}

func (g *Graph) setSlice(object *model.EndpointSlice) {
	name := id{object.Namespace, object.Name}
	slice, problems := backends.Parse(object)
	if slice == nil {
		g.dropSlice(name)
		g.problems.set(object.Key(), problems)
		return
	}
	var service *serviceState
	if slice.Service != "" {
		service = g.serviceOf(id{object.Namespace, slice.Service})
	}
	state := g.slices[name]
	if state != nil && state.service != service {
		g.dropSlice(name)
		state = nil
	}
	if state == nil {
		state = &sliceState{service: service}
		g.slices[name] = state
		if service != nil {
			if service.slices == nil {
				service.slices = map[id]struct{}{}
			}
			service.slices[name] = struct{}{}
		}
	}
	if service != nil {
		if state.slice != nil {
			g.zones.Remove(state.slice)
		}
		g.zones.Add(slice)
		service.backends.Replace(state.slice, slice)
		g.touch(service)
	}
	if state.slice != nil {
		g.leaveHomeless(name, state.slice)
	}
	state.slice, state.problems = slice, problems
	g.enterHomeless(name, slice)
	g.reportSlice(name, state)
}

func (g *Graph) deleteSlice(key model.Key) {
	g.dropSlice(id{key.Namespace, key.Name})
	g.problems.set(key, nil)
}

// dropSlice forgets a slice, if there is one of that name.
func (g *Graph) dropSlice(name id) {
	state := g.slices[name]
	if state == nil {
		return
	}
	delete(g.slices, name)
	g.leaveHomeless(name, state.slice)
	if service := state.service; service != nil {
		g.zones.Remove(state.slice)
		service.backends.Replace(state.slice, nil)
		delete(service.slices, name)
		g.touch(service)
	}
}

// reportSlice sets the problems of a slice.
func (g *Graph) reportSlice(name id, state *sliceState) {
	key := model.Key{Kind: model.KindEndpointSlice, Namespace: name.namespace, Name: name.name}
	problems := merge(state.problems, state.slice.UnknownNodes(key, g.hasNode))
	if state.service != nil && !state.service.exists {
		problems = merge(problems, []problem.Problem{backends.Orphan(key, state.service.id.name)})
	}
	g.problems.set(key, problems)
}

// buildService brings a service's resources and problems up to date.
func (g *Graph) buildService(state *serviceState) {
	key := model.Key{Kind: model.KindService, Namespace: state.id.namespace, Name: state.id.name}
	name := state.id.String()
	resourceName := Name{dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, name}
	chunks := 0
	problems := state.problems
	if state.service == nil {
		state.backends.Forget()
		g.store.remove(resourceName)
	} else {
		chunks = state.backends.Build(g.zoneOf, func(chunk int, content *dataplanev1.BackendSlice) {
			g.store.put(backendSliceResource(chunkKey(name, chunk), content))
		})
		content, claimed := g.claims.Build(state.service, chunks)
		g.store.put(serviceResource(name, content))
		problems = merge(problems, claimed)
	}
	for chunk := chunks; chunk < state.built; chunk++ {
		g.store.remove(Name{dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE, chunkKey(name, chunk)})
	}
	state.built = chunks
	g.problems.set(key, problems)
	if !state.exists && len(state.slices) == 0 {
		delete(g.services, state.id)
	}
}

func chunkKey(service string, chunk int) string {
	return service + "/" + strconv.Itoa(chunk)
}
