// SPDX-License-Identifier: Apache-2.0

// Package graph ties the calculation together: objects go in one by one, and
// what changed for whom comes out. A change costs what it touches, not what
// exists.
//
// The graph reads a change at once, notes what it touches, and computes at the
// next flush. So a flush depends on the states at the last one and now, and
// not on how the input got from one to the other; two graphs that hold the
// same objects hold the same resources, byte for byte.
package graph

import (
	"unique"

	"github.com/millrace-project/millrace/calc/backends"
	"github.com/millrace-project/millrace/calc/calculators"
	"github.com/millrace-project/millrace/calc/endpoints"
	"github.com/millrace-project/millrace/calc/frontends"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/nodes"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/calc/services"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// id names an object of a kind.
type id struct{ namespace, name string }

func (i id) String() string { return i.namespace + "/" + i.name }

// Graph holds the state of the calculation. It is not safe for concurrent
// use; what it hands out is, as long as nobody changes it.
type Graph struct {
	store    *store
	problems *problemStore
	claims   *frontends.Claims
	zones    *backends.ZoneIndex

	services map[id]*serviceState
	slices   map[id]*sliceState
	nodes    map[string]*nodeState
	config   nodes.Config
	// homeless has, by the name of a node that does not exist, the slices with
	// endpoints that name it.
	homeless map[string]map[id]struct{}
	dirty    []*serviceState // to be built at the next flush
}

// serviceState is a service name that an object or a slice mentions.
type serviceState struct {
	id       id
	exists   bool // there is a Service object
	service  *services.Service
	problems []problem.Problem // of the object alone
	backends backends.Group
	slices   map[id]struct{} // EndpointSlices that name the service
	built    int             // chunks that have a resource
	dirty    bool            // to be built at the next flush
}

// sliceState is an EndpointSlice.
type sliceState struct {
	slice    *backends.Slice
	problems []problem.Problem // of the object alone
	service  *serviceState     // the one the object names, nil if none
}

// nodeState is a Node.
type nodeState struct {
	zone string
}

// New makes a graph without objects.
func New() *Graph {
	g := &Graph{
		store:    newStore(),
		problems: newProblemStore(),
		zones:    backends.NewZoneIndex(),
		services: map[id]*serviceState{},
		slices:   map[id]*sliceState{},
		nodes:    map[string]*nodeState{},
		config:   nodes.DefaultConfig(),
		homeless: map[string]map[id]struct{}{},
	}
	g.claims = frontends.NewClaims(func(service *services.Service) {
		g.touch(g.services[id{service.Namespace, service.Name}])
	})
	return g
}

// Apply makes the changes and flushes.
func (g *Graph) Apply(changes []Change) Output {
	for _, change := range changes {
		if change.Object != nil {
			g.Upsert(change.Object)
		} else {
			g.Delete(change.Key)
		}
	}
	return g.Flush()
}

// Upsert gives an object its state. The graph keeps nothing of the object
// but strings.
func (g *Graph) Upsert(object model.Object) {
	switch object := object.(type) {
	case *model.Service:
		g.setService(object)
	case *model.EndpointSlice:
		g.setSlice(object)
	case *model.Node:
		g.setNode(object)
	case *model.Pod:
		content, problems := endpoints.Build(object)
		g.setEndpoint(object.Key(), object.NodeName, content)
		g.problems.set(object.Key(), problems)
	case *model.ConfigMap:
		content, problems := calculators.Build(object)
		g.store.put(calculatorsResource(object.Namespace+"/"+object.Name, content))
		g.problems.set(object.Key(), problems)
	case *model.Settings:
		config, problems, ok := nodes.ParseSettings(object)
		if ok {
			g.setConfig(config)
		}
		g.problems.set(object.Key(), problems)
	}
}

// Delete takes an object away. It need not have existed.
func (g *Graph) Delete(key model.Key) {
	switch key.Kind {
	case model.KindService:
		g.deleteService(id{key.Namespace, key.Name})
	case model.KindEndpointSlice:
		g.deleteSlice(key)
	case model.KindNode:
		g.deleteNode(key.Name)
	case model.KindPod:
		g.setEndpoint(key, "", nil)
		g.problems.set(key, nil)
	case model.KindConfigMap:
		g.store.remove(Name{dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS, key.Namespace + "/" + key.Name})
		g.problems.set(key, nil)
	case model.KindSettings:
		if key.Name == model.SettingsName {
			g.setConfig(nodes.DefaultConfig())
		}
		g.problems.set(key, nil)
	}
}

// Flush computes what the changes since the last flush touch, and gives what
// is different from then.
func (g *Graph) Flush() Output {
	for _, state := range g.dirty {
		state.dirty = false
		g.buildService(state)
	}
	g.dirty = nil
	updates, members := g.store.flush()
	return Output{Updates: updates, Members: members, Problems: g.problems.flush()}
}

// touch has a service built at the next flush.
func (g *Graph) touch(state *serviceState) {
	if !state.dirty {
		state.dirty = true
		g.dirty = append(g.dirty, state)
	}
}

// zoneOf gives the zone of a node, empty if the node is not known.
func (g *Graph) zoneOf(node unique.Handle[string]) string {
	if state := g.nodes[node.Value()]; state != nil {
		return state.zone
	}
	return ""
}

func (g *Graph) setNode(object *model.Node) {
	content, problems := nodes.Build(object)
	g.problems.set(object.Key(), problems)
	state := g.nodes[object.Name]
	if state == nil {
		state = &nodeState{}
		g.nodes[object.Name] = state
		g.store.put(configResource(g.config, object.Name))
		g.store.setMember(object.Name, true)
		g.nodeAppeared(object.Name)
	}
	if state.zone != content.Zone {
		state.zone = content.Zone
		g.zoneChanged(object.Name)
	}
	g.store.put(nodeResource(content))
}

func (g *Graph) deleteNode(name string) {
	g.problems.set(model.Key{Kind: model.KindNode, Name: name}, nil)
	state := g.nodes[name]
	if state == nil {
		return
	}
	delete(g.nodes, name)
	g.nodeVanished(name)
	if state.zone != "" {
		g.zoneChanged(name)
	}
	g.store.remove(Name{dataplanev1.ResourceType_RESOURCE_TYPE_NODE, name})
	g.store.remove(Name{dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG, name})
	g.store.setMember(name, false)
}

func (g *Graph) zoneChanged(node string) {
	g.zones.MarkNode(unique.Make(node), func(group *backends.Group) {
		g.touch(g.services[id{group.Namespace, group.Name}])
	})
}

func (g *Graph) setConfig(config nodes.Config) {
	if config == g.config {
		return
	}
	g.config = config
	for name := range g.nodes {
		g.store.put(configResource(config, name))
	}
}

func (g *Graph) setEndpoint(key model.Key, node string, content *dataplanev1.Endpoint) {
	if content == nil {
		g.store.remove(Name{dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, key.Namespace + "/" + key.Name})
		return
	}
	g.store.put(endpointResource(node, content))
}
