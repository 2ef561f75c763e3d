// SPDX-License-Identifier: Apache-2.0

package endpointserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/agent/internal/endpoints/deferred"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	"github.com/millrace-project/millrace/proto/errorinfo"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// plane is a dataplane that does as it is told, and has devices for some.
type plane struct {
	known       endpoints.Known
	calculators map[string]endpoints.Ended // what calculators tell, by key
	missing     map[string]string          // pods whose device is not found
	unwhole     bool
	failFlows   error
	ended       []netip.Addr
	follows     int
}

func (p *plane) SetLocal(ctx context.Context, known func() endpoints.Known) error {
	p.follows++
	if err := ctx.Err(); err != nil {
		return err
	}
	p.known = known()
	return nil
}

func (p *plane) CalculatorUID(key string) string { return p.calculators[key].UID }
func (p *plane) CalculatorKnows(e *endpoints.Ended) bool {
	c, ok := p.calculators[e.Key]
	return ok && e.Covers(e.Key, c.UID, c.Addresses)
}
func (p *plane) HasPrograms(uint32) (bool, error) { return !p.unwhole, nil }
func (p *plane) EndFlows(addresses []netip.Addr) (int, error) {
	p.ended = append(p.ended, addresses...)
	return len(addresses), p.failFlows
}

func (p *plane) Endpoints() (states []dataplane.EndpointState, err error) {
	for i := range p.known.Endpoints {
		e := &p.known.Endpoints[i]
		state := dataplane.EndpointState{Key: e.Key(), UID: e.UID, Addresses: e.Addresses, Local: e, Device: e.Device, Index: e.Index}
		if state.Index == 0 {
			state.Device, state.Index = "found", 77
		}
		if why := p.missing[e.Key()]; why != "" {
			state.Reason, state.Problem = dataplane.ReasonDeviceNotFound, why
		}
		states = append(states, state)
	}
	return states, nil
}

type rig struct {
	*Server
	plane *plane
	t     *testing.T
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	registry, errs := endpoints.Open(filepath.Join(dir, "endpoints"), "boot")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	p := &plane{calculators: map[string]endpoints.Ended{}, missing: map[string]string{}}
	return &rig{t: t, plane: p, Server: &Server{
		Socket: filepath.Join(dir, "agent.sock"), Registry: registry, Applier: p, Dataplane: p, Metrics: metrics.New("test"), Log: zap.NewNop(),
	}}
}

func attachmentTo(container string) *agentv1.CNIAttachment {
	return &agentv1.CNIAttachment{Network: "pods", ContainerId: container, Interface: "eth0"}
}

func adding(pod, container string, addresses ...string) *agentv1.AddEndpointRequest {
	return &agentv1.AddEndpointRequest{
		Attachment: attachmentTo(container), PodNamespace: "default", PodName: pod, PodUid: "uid-" + container, Addresses: addresses,
		DeviceIndex: 900000, DeviceName: "veth-" + container, NetnsCookie: 5, Netns: "/n",
	}
}

func (r *rig) add(request *agentv1.AddEndpointRequest) {
	r.t.Helper()
	if _, err := r.AddEndpoint(context.Background(), request); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) names() string {
	var names []string
	for _, e := range r.plane.known.Endpoints {
		names = append(names, e.Name+" "+e.Container)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// refused checks an error's code and reason, and that it names what is wrong.
func refused(t *testing.T, what string, err error, code codes.Code, reason, text string) {
	t.Helper()
	s := status.Convert(err)
	if got := errorinfo.Reason(err); s.Code() != code || got != reason || !strings.Contains(s.Message(), text) {
		t.Errorf("%s: %v with reason %q, want %v, %q and %q", what, err, got, code, reason, text)
	}
}

// TestAddDelete follows an endpoint, and one that cannot be programmed.
func TestAddDelete(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	r.plane.calculators["default/p"] = endpoints.Ended{Key: "default/p", UID: "before", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.4")}}
	r.add(adding("p", "c1", "fd01::5", "10.1.0.5", "10.1.0.5"))
	e := r.plane.known.Endpoints[0]
	if e.Replaces != "before" || len(e.Addresses) != 2 || e.Added.IsZero() {
		t.Fatalf("%+v", e)
	}
	// Again: nothing changes, but for the time.
	r.add(adding("p", "c1", "10.1.0.5", "fd01::5"))
	if r.names() != "p c1" {
		t.Fatal(r.names())
	}
	// Without a device of the plugin's: the one that was found is kept.
	found := adding("q", "c2", "10.1.0.6")
	found.DeviceIndex, found.DeviceName = 0, ""
	r.add(found)
	if e, _ := r.Registry.Get(endpoints.Attachment{Network: "pods", Container: "c2", Interface: "eth0"}); e.Index != 77 || e.Device != "found" {
		t.Fatalf("%+v", e)
	}
	r.plane.missing["default/lost"] = "no device"
	_, err := r.AddEndpoint(ctx, adding("lost", "c3", "10.1.0.7"))
	refused(t, "no device", err, codes.FailedPrecondition, dataplane.ReasonDeviceNotFound, "default/lost")
	if r.names() != "p c1, q c2" {
		t.Fatalf("after a refused one: %s", r.names())
	}
	// Who called is gone, or waited too long: nothing is left.
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err = r.AddEndpoint(gone, adding("late", "c4", "10.1.0.8"))
	if status.Code(err) != codes.Canceled || r.names() != "p c1, q c2" {
		t.Fatalf("%v: %s", err, r.names())
	}

	// Calculators tell of the pod until they hear of its end.
	r.plane.calculators["default/p"] = endpoints.Ended{Key: "default/p", UID: "uid-c1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.5")}}
	answer, err := r.DeleteEndpoint(ctx, &agentv1.DeleteEndpointRequest{Attachment: attachmentTo("c1")})
	if err != nil || !answer.GetKnown() || r.names() != "q c2" || len(r.plane.known.Ended) != 1 || len(r.plane.ended) != 2 {
		t.Fatalf("%v, %v: %s, ended %v and %v", answer, err, r.names(), r.plane.known.Ended, r.plane.ended)
	}
	delete(r.plane.calculators, "default/p")
	// An old sandbox is deleted once more: its address is another's by now.
	r.plane.ended = nil
	answer, err = r.DeleteEndpoint(ctx, &agentv1.DeleteEndpointRequest{Attachment: attachmentTo("c0"), Addresses: []string{"10.1.0.6", "10.1.0.99"}})
	if err != nil || answer.GetKnown() || fmt.Sprint(r.plane.ended) != "[10.1.0.99]" || len(r.plane.known.Ended) != 0 {
		t.Fatalf("%v, %v: ended flows of %v, pods %v", answer, err, r.plane.ended, r.plane.known.Ended)
	}
	// Flows that cannot be ended are an error, and tried again by the caller.
	r.plane.failFlows = errors.New("kernel")
	_, err = r.DeleteEndpoint(ctx, &agentv1.DeleteEndpointRequest{Attachment: attachmentTo("c2")})
	refused(t, "flows", err, codes.Internal, ReasonKernel, "kernel")
}

// TestOlderPod deletes a pod that is older than the plugin: it is found by its name.
func TestOlderPod(t *testing.T) {
	r := newRig(t)
	address := []netip.Addr{netip.MustParseAddr("10.1.0.5")}
	r.plane.calculators["default/old"] = endpoints.Ended{Key: "default/old", UID: "u", Addresses: address}
	request := &agentv1.DeleteEndpointRequest{Attachment: attachmentTo("c1"), Addresses: []string{"10.1.0.5"}, PodNamespace: "default", PodName: "old", PodUid: "u"}
	if _, err := r.DeleteEndpoint(context.Background(), request); err != nil {
		t.Fatal(err)
	}
	if len(r.plane.known.Ended) != 1 || !slices.Equal(r.plane.ended, address) {
		t.Fatalf("ended %v, flows of %v", r.plane.known.Ended, r.plane.ended)
	}
}

// TestDeferred does what waited before it adds, and at a start; what makes no sense
// is dropped.
func TestDeferred(t *testing.T) {
	r := newRig(t)
	r.add(adding("p", "c1", "10.1.0.5"))
	leave := func(a *agentv1.CNIAttachment) {
		t.Helper()
		if err := deferred.Leave(r.Socket, &agentv1.DeleteEndpointRequest{Attachment: a}); err != nil {
			t.Fatal(err)
		}
	}
	leave(attachmentTo("c1"))
	leave(&agentv1.CNIAttachment{})
	r.add(adding("q", "c2", "10.1.0.5"))
	if r.names() != "q c2" || fmt.Sprint(r.plane.ended) != "[10.1.0.5]" {
		t.Fatalf("%s, flows of %v", r.names(), r.plane.ended)
	}
	leave(attachmentTo("c2"))
	r.Missed(context.Background())
	if left, _ := filepath.Glob(filepath.Join(deferred.Dir(r.Socket), "*")); r.names() != "" || len(left) != 0 {
		t.Fatalf("%s, left %v", r.names(), left)
	}
}

// TestMissed ends the endpoints whose devices are gone.
func TestMissed(t *testing.T) {
	r := newRig(t)
	r.add(adding("p", "c1", "10.1.0.5"))
	here := adding("here", "c2", "10.1.0.6")
	here.DeviceIndex, here.DeviceName = 1, "lo" // one that there is everywhere
	r.add(here)
	r.DevicesGone(context.Background(), 4711)
	if r.names() != "here c2, p c1" {
		t.Fatal(r.names())
	}
	r.Missed(context.Background())
	if r.names() != "here c2" || fmt.Sprint(r.plane.ended) != "[10.1.0.5]" {
		t.Fatalf("%s, flows of %v", r.names(), r.plane.ended)
	}
	r.DevicesGone(context.Background(), 1) // an event of before: it is there
	if r.names() != "here c2" {
		t.Fatal(r.names())
	}
}

// TestRetain deletes what the container runtime does not list, of its network.
func TestRetain(t *testing.T) {
	r := newRig(t)
	other := adding("other", "c3", "10.1.0.7")
	other.Attachment.Network = "else"
	for _, request := range []*agentv1.AddEndpointRequest{adding("p", "c1", "10.1.0.5"), adding("q", "c2", "10.1.0.6"), other} {
		r.add(request)
	}
	answer, err := r.RetainEndpoints(context.Background(), &agentv1.RetainEndpointsRequest{Network: "pods", Attachments: []*agentv1.CNIAttachment{attachmentTo("c1")}})
	if err != nil || len(answer.GetDeleted()) != 1 || r.names() != "other c3, p c1" {
		t.Fatalf("%v, %v: %s", answer, err, r.names())
	}
	_, err = r.RetainEndpoints(context.Background(), &agentv1.RetainEndpointsRequest{})
	refused(t, "no network", err, codes.InvalidArgument, ReasonInvalidField, "network")
}

// TestCheck compares with what was added.
func TestCheck(t *testing.T) {
	r := newRig(t)
	check := func(request *agentv1.AddEndpointRequest) error {
		_, err := r.CheckEndpoint(context.Background(), &agentv1.CheckEndpointRequest{Endpoint: request})
		return err
	}
	refused(t, "unknown", check(adding("p", "c1", "10.1.0.5")), codes.NotFound, ReasonUnknownEndpoint, "c1")
	r.add(adding("p", "c1", "10.1.0.5"))
	if err := check(adding("p", "c1", "10.1.0.5")); err != nil {
		t.Error(err)
	}
	for text, change := range map[string]func(*agentv1.AddEndpointRequest){
		"pod default/p":     func(a *agentv1.AddEndpointRequest) { a.PodName = "x" },
		"UID":               func(a *agentv1.AddEndpointRequest) { a.PodUid = "x" },
		"addresses":         func(a *agentv1.AddEndpointRequest) { a.Addresses = []string{"10.1.0.6"} },
		"network namespace": func(a *agentv1.AddEndpointRequest) { a.NetnsCookie = 6 },
		"device":            func(a *agentv1.AddEndpointRequest) { a.DeviceIndex = 6 },
	} {
		request := adding("p", "c1", "10.1.0.5")
		change(request)
		refused(t, text, check(request), codes.FailedPrecondition, ReasonDifferentEndpoint, text)
	}
	r.plane.unwhole = true
	refused(t, "programs gone", check(adding("p", "c1", "10.1.0.5")), codes.FailedPrecondition, dataplane.ReasonAttach, "removed")
	r.plane.missing["default/p"] = "gone"
	refused(t, "device gone", check(adding("p", "c1", "10.1.0.5")), codes.FailedPrecondition, dataplane.ReasonDeviceNotFound, "gone")
}

// TestBadRequests names the field that is wrong.
func TestBadRequests(t *testing.T) {
	r := newRig(t)
	for field, change := range map[string]func(*agentv1.AddEndpointRequest){
		"attachment.network":      func(a *agentv1.AddEndpointRequest) { a.Attachment.Network = "" },
		"attachment.container_id": func(a *agentv1.AddEndpointRequest) { a.Attachment = nil },
		"attachment.interface":    func(a *agentv1.AddEndpointRequest) { a.Attachment.Interface = "" },
		"pod_namespace":           func(a *agentv1.AddEndpointRequest) { a.PodNamespace = "" },
		"pod_name":                func(a *agentv1.AddEndpointRequest) { a.PodName = "" },
		"pod_uid":                 func(a *agentv1.AddEndpointRequest) { a.PodUid = "" },
		"addresses":               func(a *agentv1.AddEndpointRequest) { a.Addresses = nil },
		"addresses[1]":            func(a *agentv1.AddEndpointRequest) { a.Addresses = append(a.Addresses, "::") },
		"device_index":            func(a *agentv1.AddEndpointRequest) { a.DeviceName = "" },
	} {
		request := adding("p", "c1", "10.1.0.5")
		change(request)
		if field == "attachment.container_id" {
			request.Attachment = &agentv1.CNIAttachment{Network: "n"}
		}
		_, err := r.AddEndpoint(context.Background(), request)
		refused(t, field, err, codes.InvalidArgument, ReasonInvalidField, field)
	}
	if r.plane.follows != 0 {
		t.Error("a request that makes no sense reached the dataplane")
	}
}
