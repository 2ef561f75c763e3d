// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/proto/access"
	"github.com/millrace-project/millrace/proto/digest"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

const (
	typeNodeConfig   = dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG
	typeNode         = dataplanev1.ResourceType_RESOURCE_TYPE_NODE
	typeEndpoint     = dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT
	typeBackendSlice = dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE
	typeService      = dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE
)

var allTypes = []dataplanev1.ResourceType{typeNodeConfig, typeNode, typeEndpoint, typeBackendSlice, typeService}

const epoch = "cluster/1"

// calculator is a publisher behind a real server.
type calculator struct {
	t         *testing.T
	publisher *publish.Publisher
	service   *publish.Service
	registry  *prometheus.Registry
	logs      *observer.ObservedLogs
	listener  *bufconn.Listener
}

func newCalculator(t *testing.T, options publish.Options) *calculator {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	c := &calculator{t: t, publisher: publish.NewPublisher(), registry: prometheus.NewRegistry(), logs: logs, listener: bufconn.Listen(1 << 16)}
	options.CalculatorID, options.Version = "test", "v0"
	options.Epoch = func() string { return epoch }
	options.Log, options.Registry = zap.New(core), c.registry
	options.Schemas = map[dataplanev1.ResourceType]uint32{}
	for _, kind := range allTypes {
		options.Schemas[kind] = 1
	}
	c.service = publish.NewService(c.publisher, options)
	server := grpc.NewServer(append(access.Local().Options(), grpc.ForceServerCodecV2(publish.Codec()))...)
	dataplanev1.RegisterSyncServiceServer(server, c.service)
	go server.Serve(c.listener) //nolint:errcheck // ends with Stop
	t.Cleanup(server.Stop)
	return c
}

// publish publishes changes as the next revision.
func (c *calculator) publish(batch publish.Batch) uint64 {
	c.t.Helper()
	revision, err := c.publisher.Publish(batch)
	if err != nil {
		c.t.Fatalf("Publish: %v", err)
	}
	return revision
}

// counter returns a counter's or gauge's value, summed over labels that match.
func (c *calculator) counter(metric string, labels ...string) float64 {
	c.t.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		c.t.Fatalf("gathering metrics: %v", err)
	}
	sum, found := 0.0, false
	for _, family := range families {
		if family.GetName() != metric {
			continue
		}
		for _, m := range family.GetMetric() {
			matches := true
			for i, want := range labels {
				matches = matches && m.GetLabel()[i].GetValue() == want
			}
			if matches {
				found = true
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	if !found {
		c.t.Fatalf("there is no metric %s%v", metric, labels)
	}
	return sum
}

type key struct {
	kind dataplanev1.ResourceType
	key  string
}

// agent is a minimal agent: it holds versions and checks what it is sent.
type agent struct {
	t        *testing.T
	node     string
	types    []dataplanev1.ResourceType
	held     map[key]uint64
	position map[string]uint64
	epoch    string
	instance string
	notices  []*dataplanev1.Notice

	stream   grpc.BidiStreamingClient[dataplanev1.SyncRequest, dataplanev1.SyncResponse]
	upserts  int // in the last batch
	removals int
	asked    int // buckets asked for on this stream
	bytes    int // bytes of updates on this stream
	order    []string
	largest  int
}

func newAgent(t *testing.T, node string) *agent {
	return &agent{t: t, node: node, types: allTypes, held: map[key]uint64{}}
}

// dial opens a connection of the agent's own.
func (a *agent) dial(c *calculator) {
	a.t.Helper()
	connection, err := grpc.NewClient("passthrough:///test",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.t.Fatalf("dialling: %v", err)
	}
	a.t.Cleanup(func() { connection.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	a.t.Cleanup(cancel)
	a.stream, err = dataplanev1.NewSyncServiceClient(connection).Sync(ctx)
	if err != nil {
		a.t.Fatalf("opening the stream: %v", err)
	}
	a.asked, a.bytes, a.largest = 0, 0, 0
}

func (a *agent) hello() *dataplanev1.SyncRequest {
	hello := &dataplanev1.Hello{NodeName: a.node, AgentVersion: "v0", Epoch: a.epoch, InstanceId: a.instance,
		Position: &dataplanev1.Position{ResourceVersions: a.position}}
	for _, kind := range a.types {
		hello.Types = append(hello.Types, &dataplanev1.TypeSupport{Type: kind, Schema: 1})
	}
	if len(a.held) > 0 {
		buckets := a.digests()
		hello.BucketDigests = buckets.Digests()
	}
	return &dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Hello{Hello: hello}}
}

func (a *agent) digests() *digest.Buckets {
	var buckets digest.Buckets
	for k, version := range a.held {
		buckets.Add(&dataplanev1.ResourceName{Type: k.kind, Key: k.key}, version)
	}
	return &buckets
}

func (a *agent) send(request *dataplanev1.SyncRequest) {
	a.t.Helper()
	if err := a.stream.Send(request); err != nil {
		a.t.Fatalf("sending %T: %v", request.GetMessage(), err)
	}
}

// connect opens a stream and takes the first batch.
func (a *agent) connect(c *calculator) *dataplanev1.Commit {
	a.t.Helper()
	a.dial(c)
	a.send(a.hello())
	return a.batch()
}

// batch receives messages up to a commit and applies them.
func (a *agent) batch() *dataplanev1.Commit {
	a.t.Helper()
	commit, err := a.tryBatch()
	if err != nil {
		a.t.Fatalf("receiving a batch: %v", err)
	}
	return commit
}

func (a *agent) tryBatch() (*dataplanev1.Commit, error) {
	a.upserts, a.removals, a.order = 0, 0, nil
	next := maps.Clone(a.held)
	for {
		response, err := a.stream.Recv()
		if err != nil {
			return nil, err
		}
		switch message := response.GetMessage().(type) {
		case *dataplanev1.SyncResponse_Welcome:
			a.epoch = message.Welcome.GetEpoch()
		case *dataplanev1.SyncResponse_Notice:
			a.notices = append(a.notices, message.Notice)
		case *dataplanev1.SyncResponse_HeldRequest:
			a.answer(message.HeldRequest)
		case *dataplanev1.SyncResponse_Update:
			a.bytes += proto.Size(response)
			a.largest = max(a.largest, proto.Size(response))
			a.apply(next, message.Update)
		case *dataplanev1.SyncResponse_Commit:
			a.held = next
			a.position = message.Commit.GetPosition().GetResourceVersions()
			if sum := message.Commit.GetDigest(); sum != 0 && sum != a.digests().Sum() {
				return nil, fmt.Errorf("digest after revision %d is %x, the commit says %x", message.Commit.GetRevision(), a.digests().Sum(), sum)
			}
			return message.Commit, nil
		default:
			return nil, fmt.Errorf("unexpected message %T", message)
		}
	}
}

func (a *agent) answer(request *dataplanev1.HeldRequest) {
	for _, bucket := range request.GetBuckets() {
		a.asked++
		held := &dataplanev1.Held{Bucket: bucket}
		for k, version := range a.held {
			n := &dataplanev1.ResourceName{Type: k.kind, Key: k.key}
			if digest.Bucket(n) == int(bucket) {
				held.Resources = append(held.Resources, &dataplanev1.HeldResource{Name: n, Version: version})
			}
		}
		a.send(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Held{Held: held}})
	}
}

func (a *agent) apply(next map[key]uint64, update *dataplanev1.Update) {
	a.t.Helper()
	for _, resource := range update.GetUpserts() {
		a.upserts++
		k := key{resource.GetName().GetType(), resource.GetName().GetKey()}
		next[k] = resource.GetVersion()
		a.order = append(a.order, fmt.Sprintf("+%d %s", k.kind, k.key))
	}
	for _, n := range update.GetRemovals() {
		a.removals++
		k := key{n.GetType(), n.GetKey()}
		if _, ok := next[k]; !ok {
			a.t.Errorf("node %s is told to remove %v, which it does not hold", a.node, k)
		}
		delete(next, k)
		a.order = append(a.order, fmt.Sprintf("-%d %s", k.kind, k.key))
	}
}

func (a *agent) ack(revision uint64) {
	a.t.Helper()
	a.send(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Ack{Ack: &dataplanev1.Ack{ProgrammedRevision: revision}}})
}

// resource makes a resource of which only the size and identity matter here.
func resource(kind dataplanev1.ResourceType, k string, version uint64) *dataplanev1.Resource {
	r := &dataplanev1.Resource{Name: &dataplanev1.ResourceName{Type: kind, Key: k}, Version: version}
	switch kind {
	case typeNodeConfig:
		r.Content = &dataplanev1.Resource_NodeConfig{NodeConfig: &dataplanev1.NodeConfig{NodeName: k}}
	case typeNode:
		r.Content = &dataplanev1.Resource_Node{Node: &dataplanev1.Node{Name: k}}
	case typeEndpoint:
		r.Content = &dataplanev1.Resource_Endpoint{Endpoint: &dataplanev1.Endpoint{Name: k}}
	case typeBackendSlice:
		r.Content = &dataplanev1.Resource_BackendSlice{BackendSlice: &dataplanev1.BackendSlice{Name: k}}
	default:
		r.Content = &dataplanev1.Resource_Service{Service: &dataplanev1.Service{Name: k}}
	}
	return r
}

func upsert(audience publish.Audience, kind dataplanev1.ResourceType, k string, version uint64) publish.Change {
	return publish.Change{Audience: audience, Resource: resource(kind, k, version)}
}

func removal(audience publish.Audience, kind dataplanev1.ResourceType, k string) publish.Change {
	return publish.Change{Audience: audience, Removed: true, Resource: &dataplanev1.Resource{Name: &dataplanev1.ResourceName{Type: kind, Key: k}}}
}

// cluster makes the first batch of a cluster with nodes and services.
func cluster(services int, nodes ...string) publish.Batch {
	batch := publish.Batch{Position: publish.Position{"services": 10}}
	for _, node := range nodes {
		own := publish.Audience("node/" + node)
		batch.Nodes = append(batch.Nodes, publish.Node{Name: node, Audiences: []publish.Audience{own, "all"}})
		batch.Changes = append(batch.Changes, upsert(own, typeNodeConfig, node, 1), upsert("all", typeNode, node, 1))
	}
	for i := range services {
		k := fmt.Sprintf("default/service-%d", i)
		batch.Changes = append(batch.Changes, upsert("all", typeBackendSlice, k+"/0", 1), upsert("all", typeService, k, 1))
	}
	return batch
}
