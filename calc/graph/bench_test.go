// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
)

// cluster makes a cluster of services with one slice each, on 100 nodes.
func cluster(services, backends int) []model.Object {
	var objects []model.Object
	for n := range 100 {
		objects = append(objects, node(fmt.Sprint("node-", n), fmt.Sprint("zone-", n%3)))
	}
	for i := range services {
		objects = append(objects, benchService(i), benchSlice(i, backends, 0))
	}
	return objects
}

func benchService(i int) *model.Service {
	return service(fmt.Sprint("service-", i), clusterIPs(fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)))
}

// benchSlice makes a slice; its first endpoint runs on the node-th node.
func benchSlice(i, backends, node int) *model.EndpointSlice {
	endpoints := make([]model.Endpoint, backends)
	for b := range endpoints {
		n := i*backends + b
		at := n
		if b == 0 {
			at += node
		}
		endpoints[b] = endpoint(fmt.Sprintf("10.%d.%d.%d", 1+n>>16, n>>8&255, n&255), fmt.Sprint("node-", at%100))
	}
	return endpointSlice(fmt.Sprint("service-", i, "-abcde"), fmt.Sprint("service-", i), endpoints...)
}

func build(objects []model.Object) *graph.Graph {
	g := graph.New()
	for _, object := range objects {
		g.Upsert(object)
	}
	g.Flush()
	return g
}

var sizes = []struct{ services, backends int }{{10_000, 5}, {10_000, 25}}

func BenchmarkBuild(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.backends), func(b *testing.B) {
			objects := cluster(size.services, size.backends)
			var before, after runtime.MemStats
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&before)
				b.StartTimer()
				g := build(objects)
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(size.services*size.backends), "B/backend")
				runtime.KeepAlive(g)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkEndpointChange moves one endpoint of one service to and fro.
func BenchmarkEndpointChange(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.backends), func(b *testing.B) {
			g := build(cluster(size.services, size.backends))
			changes := [2][]graph.Change{
				{graph.Set(benchSlice(77, size.backends, 1))}, {graph.Set(benchSlice(77, size.backends, 0))}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if output := g.Apply(changes[i%2]); len(output.Updates) != 1 {
					b.Fatalf("%d updates", len(output.Updates))
				}
			}
		})
	}
}

// BenchmarkServiceChange changes a port of one service to and fro.
func BenchmarkServiceChange(b *testing.B) {
	g := build(cluster(10_000, 5))
	other := benchService(77)
	other.Ports = []model.ServicePort{{Name: "web", Protocol: "TCP", Port: 81}}
	changes := [2][]graph.Change{{graph.Set(other)}, {graph.Set(benchService(77))}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if output := g.Apply(changes[i%2]); len(output.Updates) != 1 {
			b.Fatalf("%d updates", len(output.Updates))
		}
	}
}

// BenchmarkZoneChange relabels a node that backends of 500 services are on.
func BenchmarkZoneChange(b *testing.B) {
	g := build(cluster(10_000, 5))
	changes := [2][]graph.Change{{graph.Set(node("node-7", "zone-x"))}, {graph.Set(node("node-7", "zone-1"))}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if output := g.Apply(changes[i%2]); len(output.Updates) != 501 {
			b.Fatalf("%d updates", len(output.Updates))
		}
	}
}
