// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// requests is a stream on which an agent said this and then no more.
type requests struct {
	grpc.BidiStreamingServer[dataplanev1.SyncRequest, dataplanev1.SyncResponse]
	left []*dataplanev1.SyncRequest
}

func (r *requests) Context() context.Context { return context.Background() }

func (r *requests) Recv() (*dataplanev1.SyncRequest, error) {
	if len(r.left) == 0 {
		return nil, io.EOF
	}
	next := r.left[0]
	r.left = r.left[1:]
	return next, nil
}

// TestEarlyReport has an agent report while its stream waits to be attached: it
// does not say the same again.
func TestEarlyReport(t *testing.T) {
	hello := &dataplanev1.Hello{NodeName: "n1"}
	service := NewService(NewPublisher(), Options{Registry: prometheus.NewRegistry(), Log: zap.NewNop()})
	st := newStream(service, &requests{left: []*dataplanev1.SyncRequest{
		{Message: &dataplanev1.SyncRequest_Hello{Hello: hello}},
		{Message: &dataplanev1.SyncRequest_Report{Report: &dataplanev1.Report{Problems: []string{"no room"}}}},
	}})
	st.node = "n1"
	if err := st.receive(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if _, err := service.attach(st, hello); err != nil {
		t.Fatal(err)
	}
	if got := service.Reported()["n1"]; len(got) != 1 || got[0] != "no room" {
		t.Errorf("the node reports %q", got)
	}
}
