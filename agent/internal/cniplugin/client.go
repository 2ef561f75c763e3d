// SPDX-License-Identifier: Apache-2.0

package cniplugin

import (
	"context"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// agent is the connection to the node's agent.
type agent struct {
	conn   *grpc.ClientConn
	client agentv1.EndpointServiceClient
}

// again is how long to wait before another attempt: an agent restarts within a
// second, and a pod waits.
const again = 50 * time.Millisecond

func dial(socket string) (*agent, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: again, Multiplier: 1.3, MaxDelay: time.Second / 2},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "dial "+socket+": "+err.Error(), "")
	}
	return &agent{conn: conn, client: agentv1.NewEndpointServiceClient(conn)}, nil
}

func (a *agent) close() { a.conn.Close() } //nolint:errcheck // the process ends

// call calls until the agent has answered or ctx ends: an agent that is restarted
// meanwhile is asked again, as calls may be repeated. The error is the last that
// tells why.
func (a *agent) call(ctx context.Context, f func(context.Context) error) error {
	var last error
	for {
		err := f(ctx)
		if status.Code(err) != codes.Unavailable {
			if status.Code(err) == codes.DeadlineExceeded && last != nil {
				return last
			}
			return err
		}
		last = err
		select {
		case <-ctx.Done():
			return last
		case <-time.After(again):
		}
	}
}
