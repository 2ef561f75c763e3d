// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/proto/digest"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// What a later release may have that this one does not know.
const (
	laterType     = dataplanev1.ResourceType(9)
	laterField    = 99
	laterContent  = 40  // of Resource.content
	laterMessage  = 31  // of SyncRequest.message and SyncResponse.message
	laterProtocol = 132 // of Protocol
	laterMode     = 7   // of DataplaneMode
)

// laterFields are fields that this release does not know.
func laterFields() []byte {
	b := protowire.AppendTag(nil, laterField, protowire.BytesType)
	return protowire.AppendString(b, "of a later release")
}

// field is a message with one field, a message.
func field(number protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
}

// laterCalculator makes what a calculator sends that of a later release: there
// are types, fields, enum values and messages that nobody here knows.
type laterCalculator struct {
	mu sync.Mutex
	// difference is what the digest of a commit must be changed by.
	difference uint64
	sent       bool
}

func (l *laterCalculator) change(message []byte) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	response := &dataplanev1.SyncResponse{}
	if err := proto.Unmarshal(message, response); err != nil {
		return nil
	}
	response.ProtoReflect().SetUnknown(laterFields())
	switch m := response.GetMessage().(type) {
	case *dataplanev1.SyncResponse_Welcome:
		l.difference, l.sent = 0, false
		m.Welcome.ProtoReflect().SetUnknown(laterFields())
	case *dataplanev1.SyncResponse_Update:
		for _, resource := range m.Update.GetUpserts() {
			l.alter(resource)
		}
		if !l.sent {
			l.sent = true
			later := &dataplanev1.Resource{Name: &dataplanev1.ResourceName{Type: laterType, Key: "shop/later"}, Version: 77}
			later.ProtoReflect().SetUnknown(field(laterContent, laterFields()))
			m.Update.Upserts = append(m.Update.Upserts, later)
			l.difference ^= digest.ResourceDigest(later.GetName(), later.GetVersion())
		}
	case *dataplanev1.SyncResponse_Commit:
		if m.Commit.GetDigest() != 0 {
			m.Commit.Digest ^= l.difference
		}
		m.Commit.ProtoReflect().SetUnknown(laterFields())
		return [][]byte{field(laterMessage, laterFields()), marshal(response)}
	}
	return [][]byte{marshal(response)}
}

// alter gives a resource another version and what this release does not know.
func (l *laterCalculator) alter(resource *dataplanev1.Resource) {
	switch content := resource.GetContent().(type) {
	case *dataplanev1.Resource_Service:
		content.Service.ProtoReflect().SetUnknown(laterFields())
		content.Service.Ports = append(content.Service.Ports, &dataplanev1.ServicePort{Name: "later", Protocol: laterProtocol, Port: 7})
	case *dataplanev1.Resource_NodeConfig:
		content.NodeConfig.Mode = laterMode
	case *dataplanev1.Resource_BackendSlice:
		for _, backend := range content.BackendSlice.GetBackends() {
			backend.ProtoReflect().SetUnknown(laterFields())
		}
	default:
		return
	}
	l.difference ^= digest.ResourceDigest(resource.GetName(), resource.GetVersion())
	resource.Version ^= 1
	l.difference ^= digest.ResourceDigest(resource.GetName(), resource.GetVersion())
}

func marshal(message proto.Message) []byte {
	data, err := proto.Marshal(message)
	if err != nil {
		panic(err) // of messages that were just decoded
	}
	return data
}

// wantErrors waits until an agent reports exactly these errors, each as
// "REASON type key field".
func wantErrors(t *testing.T, agent *testbed.Agent, want ...string) {
	t.Helper()
	slices.Sort(want)
	ctx := harness.Limit(t, 30*time.Second)
	err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if !status.GetCalculator().GetInSync() {
			return fmt.Errorf("not in sync: %v", status.GetCalculator())
		}
		var got []string
		for _, e := range status.GetErrors() {
			got = append(got, fmt.Sprintf("%s %d %s %s", e.GetReason(), e.GetName().GetType(), e.GetName().GetKey(), e.GetField()))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("errors\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// answers asks a service's cluster IPs by TCP and UDP.
func answers(t *testing.T, stack *testbed.Stack, service testbed.Service) {
	t.Helper()
	for _, network := range []string{probe.TCP, probe.UDP} {
		for _, family := range []int{4, 6} {
			answer, err := stack.Ask(&stack.Nodes[0].Pods[0].Host, probe.Dial{Network: network, Target: clusterIP(service, family)})
			if err != nil {
				t.Fatal(err)
			}
			if answer.Failure != probe.None {
				t.Errorf("%s v%d of %s: %+v", network, family, service.Name, answer)
			}
		}
	}
}

// TestLaterCalculator connects an agent to a calculator of a later release: what
// it does not know it names, everything else it does. Back at a calculator of
// its own release nothing of it is left.
func TestLaterCalculator(t *testing.T) {
	stack := startCluster(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	web := newService("web", 1, stack.Nodes[0].Pods[1].Endpoint(), stack.Nodes[1].Pods[0].Endpoint())
	if err := stack.ApplyService(web); err != nil {
		t.Fatal(err)
	}
	useCalculator(t, stack, present)
	later := startTap(t, stack, tapPort, asItIs, (&laterCalculator{}).change)
	options := testbed.AgentOptions{Binaries: present, Calculators: []string{later}}
	agent := useAgent(t, stack, 0, options)
	resources := []string{
		fmt.Sprintf("UNKNOWN_TYPE %d shop/later ", laterType),
		"UNSUPPORTED 1 node-1 mode",
		"INVALID 5 default/web ports[2].protocol",
	}
	message := fmt.Sprintf("UNKNOWN_MESSAGE 0 SyncResponse field %d ", laterMessage)
	wantErrors(t, agent, append(slices.Clone(resources), message)...)
	answers(t, stack, web)

	// A change goes on being programmed.
	second := newService("second", 2, stack.Nodes[1].Pods[1].Endpoint())
	if err := stack.ApplyService(second); err != nil {
		t.Fatal(err)
	}
	resources = append(resources, "INVALID 5 default/second ports[2].protocol")
	wantErrors(t, agent, append(slices.Clone(resources), message)...)
	answers(t, stack, second)

	// The log keeps what is not known.
	agent = useAgent(t, stack, 0, options)
	wantErrors(t, agent, append(slices.Clone(resources), message)...)
	answers(t, stack, web)

	agent = useAgent(t, stack, 0, testbed.AgentOptions{Binaries: present})
	wantErrors(t, agent)
	settled(t, stack, agent)
	if held := heldCounts(t, agent); strings.Contains(held, fmt.Sprint(laterType)) {
		t.Errorf("still holds %s", held)
	}
	answers(t, stack, web)
	isClean(t, agent)
}

// TestLaterAgent connects an agent of a later release: the calculator serves it
// what it knows, and refuses by a typed error, on that stream alone, a message
// that it does not know.
func TestLaterAgent(t *testing.T) {
	stack := startCluster(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	web := newService("web", 1, stack.Nodes[0].Pods[1].Endpoint(), stack.Nodes[1].Pods[0].Endpoint())
	useCalculator(t, stack, present)
	var refused atomic.Int64
	later := startTap(t, stack, tapPort, func(message []byte) [][]byte {
		request := &dataplanev1.SyncRequest{}
		if err := proto.Unmarshal(message, request); err != nil {
			return nil
		}
		request.ProtoReflect().SetUnknown(laterFields())
		switch m := request.GetMessage().(type) {
		case *dataplanev1.SyncRequest_Hello:
			m.Hello.ProtoReflect().SetUnknown(laterFields())
			m.Hello.DataplaneMode = laterMode
			m.Hello.Types = append(m.Hello.Types, &dataplanev1.TypeSupport{Type: laterType, Schema: 3})
			for _, support := range m.Hello.GetTypes() {
				support.Schema += 4
			}
		case *dataplanev1.SyncRequest_Ack:
			m.Ack.ProtoReflect().SetUnknown(laterFields())
			// It tries once, and knows from the refusal that it must not again.
			if refused.CompareAndSwap(0, 1) {
				return [][]byte{marshal(request), field(laterMessage, laterFields())}
			}
		case *dataplanev1.SyncRequest_Report:
			m.Report.ProtoReflect().SetUnknown(laterFields())
		}
		return [][]byte{marshal(request)}
	}, asItIs)
	agent := useAgent(t, stack, 0, testbed.AgentOptions{Binaries: present, Calculators: []string{later}})
	other := useAgent(t, stack, 1, testbed.AgentOptions{Binaries: present})
	serve(t, stack, web)
	ctx := harness.Limit(t, 30*time.Second)
	err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if c := status.GetCalculator(); !c.GetInSync() || c.GetConnects() != 2 || !strings.Contains(c.GetLastError(), fmt.Sprintf("type %d is unknown", laterMessage)) {
			return fmt.Errorf("want a second stream after a refusal that names the message: %v", c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	settled(t, stack, agent)
	if connection := settled(t, stack, other); connection.GetConnects() != 1 {
		t.Errorf("the other node's stream was ended too: %v", connection)
	}
	serve(t, stack, newService("second", 2, stack.Nodes[1].Pods[1].Endpoint()))
	answers(t, stack, web)
	isClean(t, agent)
}
