// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"errors"
	"io"

	"google.golang.org/grpc"
)

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
