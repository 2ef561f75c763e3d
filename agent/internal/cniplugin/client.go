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

// again is how long to wait before another attempt: an agent restarts within a
// second, and a pod waits.
const again = 50 * time.Millisecond

// ask makes a call of the agent of the socket, until the agent has answered or
// the time is over: one that is restarted meanwhile is asked again, as calls may
// be repeated. The error is the last that tells why.
func ask[Request, Response any](socket string, timeout time.Duration,
	call func(agentv1.EndpointServiceClient, context.Context, Request, ...grpc.CallOption) (Response, error), request Request,
) error {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: again, Multiplier: 1.3, MaxDelay: time.Second / 2},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "dial "+socket+": "+err.Error(), "")
	}
	defer conn.Close() //nolint:errcheck // the process ends
	client := agentv1.NewEndpointServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var last error
	for {
		_, err := call(client, ctx, request)
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
