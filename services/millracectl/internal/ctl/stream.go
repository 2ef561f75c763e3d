// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// listAgent calls an RPC of the agent that answers with a stream, and collects
// the answers.
func listAgent[Q, R any](a *App, cmd *cobra.Command, tried string,
	rpc func(agentv1.AgentServiceClient, context.Context, *Q, ...grpc.CallOption) (grpc.ServerStreamingClient[R], error), request *Q,
) ([]*R, error) {
	s, err := a.dialAgent(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer s.close()
	stream, err := rpc(s.agent(), s.ctx, request)
	return collect(s, tried, stream, err)
}

// collect reads a stream of answers to its end. A table needs all rows before
// the first can be printed, and a list for programs that broke off in the
// middle would not parse.
func collect[R any](s *session, tried string, stream grpc.ServerStreamingClient[R], err error) ([]*R, error) {
	if err != nil {
		return nil, rpcError(tried, s.target, err)
	}
	var answers []*R
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answers, nil
		}
		if err != nil {
			return nil, rpcError(tried, s.target, err)
		}
		answers = append(answers, answer)
	}
}
