// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/access"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

// calculator is a connection to one.
type calculator struct {
	grpc.ClientConnInterface
	gone   bool
	asked  int
	answer error
	last   *calculatorv1.ReviewAccessRequest
}

func (c *calculator) Invoke(_ context.Context, _ string, request, _ any, _ ...grpc.CallOption) error {
	c.asked++
	c.last = request.(*calculatorv1.ReviewAccessRequest)
	return c.answer
}

func (c *calculator) connection() (grpc.ClientConnInterface, bool) { return c, !c.gone }

// TestReviewer: what a calculator answered counts for a while, and longer while
// none answers.
func TestReviewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calculator{}
		permit := Gate(NewReviewer(c.connection), nil).Permit
		try := func(token, method string) error {
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(access.Header, access.Bearer(token)))
			return permit(ctx, access.Caller{}, access.Get, method)
		}
		expect := func(after time.Duration, asked int) {
			t.Helper()
			time.Sleep(after)
			if err := try("good", "/s/M"); err != nil || c.asked != asked {
				t.Fatalf("%v after %d questions; want it allowed after %d", err, c.asked, asked)
			}
		}
		expect(0, 1)
		if c.last.GetToken() != "good" || c.last.GetMethod() != "/s/M" {
			t.Errorf("asked about %v", c.last)
		}
		expect(allowedFor-time.Second, 1)
		expect(2*time.Second, 2)
		c.gone = true
		expect(allowedFor, 2)
		if err := try("good", "/s/N"); access.ReasonOf(err) != access.ReasonReviewFailed {
			t.Errorf("another RPC without a calculator: %v", err)
		}
		c.gone, c.answer = false, status.Error(codes.Unavailable, "connection lost")
		expect(time.Second, 3)
		c.answer = status.Error(codes.Unimplemented, "an older calculator")
		if err := try("other", "/s/M"); access.ReasonOf(err) != access.ReasonReviewFailed {
			t.Errorf("a calculator that does not know the RPC: %v", err)
		}
		time.Sleep(allowedAway)
		if err := try("good", "/s/M"); access.ReasonOf(err) != access.ReasonReviewFailed {
			t.Errorf("long after the last answer: %v", err)
		}
		c.answer = access.Deny(codes.Unauthenticated, access.ReasonTokenRejected, "no")
		before := c.asked
		for range 3 {
			if err := try("good", "/s/M"); access.ReasonOf(err) != access.ReasonTokenRejected {
				t.Errorf("a token that is not accepted any more: %v", err)
			}
		}
		if c.asked != before+1 {
			t.Errorf("a rejection is asked for %d times", c.asked-before)
		}
		c.answer = nil
		expect(rejectedFor, before+2)
	})
}

// TestReviewerIsBounded: tokens without number take no room without bound.
func TestReviewerIsBounded(t *testing.T) {
	c := &calculator{answer: access.Deny(codes.Unauthenticated, access.ReasonTokenRejected, "no")}
	r := NewReviewer(c.connection)
	for i := range maxReviews + 100 {
		if err := r.review(t.Context(), fmt.Sprint(i), "/s/M"); err == nil {
			t.Fatal(errors.New("let in"))
		}
	}
	if len(r.known) != maxReviews {
		t.Errorf("%d answers are remembered; want %d", len(r.known), maxReviews)
	}
}
