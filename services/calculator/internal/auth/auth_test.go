// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/access"
)

const agentUser = "system:serviceaccount:millrace-system:millrace-agent"

// server answers reviews as the test says.
type server struct {
	*Authenticator
	mu       sync.Mutex
	reviews  int
	running  int
	most     int           // at a time
	delay    time.Duration // of an answer
	away     error
	answer   func(*authenticationv1.TokenReviewStatus)
	allow    func(authorizationv1.SubjectAccessReviewSpec) bool
	problems []problem.Problem
	logs     *observer.ObservedLogs
}

// agentOf answers that a token is of a node's agent.
func agentOf(node string) func(*authenticationv1.TokenReviewStatus) {
	return func(s *authenticationv1.TokenReviewStatus) {
		s.Authenticated, s.Audiences = true, []string{"here"}
		s.User = authenticationv1.UserInfo{Username: agentUser, Extra: map[string]authenticationv1.ExtraValue{
			extraNode: {node}, extraPod: {"pod-of-" + node}}}
	}
}

func newServer() *server {
	core, logs := observer.New(zap.InfoLevel)
	s := &server{answer: agentOf("n1"), logs: logs}
	s.Authenticator = New(Options{Tokens: tokenReviews{s}, Rights: accessReviews{s}, Audience: "here", AgentAudience: "agents", AgentAccount: agentUser, Log: zap.New(core),
		Registry: prometheus.NewRegistry(), SetProblems: func(found []problem.Problem) { s.problems = found }})
	return s
}

// tokenReviews and accessReviews are the API server's.
type (
	tokenReviews  struct{ *server }
	accessReviews struct{ *server }
)

func (s *server) begin() error {
	s.mu.Lock()
	s.reviews++
	s.running++
	s.most = max(s.most, s.running)
	delay, away := s.delay, s.away
	s.mu.Unlock()
	time.Sleep(delay) // of the bubble's clock
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	return away
}

func (r tokenReviews) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	if err := r.begin(); err != nil {
		return nil, err
	}
	answer := review.DeepCopy()
	r.answer(&answer.Status)
	return answer, nil
}

func (r accessReviews) Create(_ context.Context, review *authorizationv1.SubjectAccessReview, _ metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error) {
	if err := r.begin(); err != nil {
		return nil, err
	}
	answer := review.DeepCopy()
	answer.Status.Allowed = r.allow(answer.Spec)
	return answer, nil
}

func (s *server) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reviews
}

// jwt is a token with these claims.
func jwt(claims string) string {
	return "header." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".signature"
}

func token(id int, expires time.Time) string {
	return jwt(fmt.Sprintf(`{"aud":["here"],"exp":%d,"jti":"%d"}`, expires.Unix(), id))
}

// call is the context of a call over TLS with these authorization headers.
func call(headers ...string) context.Context {
	ctx := peer.NewContext(context.Background(), &peer.Peer{
		Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{}}})
	return metadata.NewIncomingContext(ctx, metadata.MD{access.Header: headers})
}

func (s *server) try(token string) (access.Caller, error) {
	return s.authenticate(call(access.Bearer(token)))
}

func wantReason(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || access.ReasonOf(err) != reason {
		t.Errorf("%v; want %s with reason %s", err, code, reason)
	}
}

// TestRememberedReview: one review serves many calls, is renewed when it is
// old, and counts while the API server is away, but not longer than the token.
func TestRememberedReview(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		held := token(1, time.Now().Add(time.Hour))
		expect := func(after time.Duration, reviews int) {
			t.Helper()
			time.Sleep(after)
			caller, err := s.try(held)
			if err != nil || caller.Kind != access.Agent || caller.Node != "n1" || caller.Pod != "pod-of-n1" || s.asked() != reviews {
				t.Fatalf("after %v: %+v, %v, %d reviews; want an agent and %d", after, caller, err, s.asked(), reviews)
			}
		}
		expect(0, 1)
		expect(tokenFreshFor-time.Second, 1)
		expect(2*time.Second, 2)
		s.away = errors.New("connection refused")
		expect(tokenFreshFor, 3)
		expect(awayPause-time.Second, 3)
		if len(s.problems) != 1 || !strings.Contains(s.problems[0].Message, "connection refused") {
			t.Errorf("problems %v; want that the API server is away", s.problems)
		}
		expect(2*time.Second, 4)
		// Nobody who was not seen before gets in, and nobody beyond his time.
		_, err := s.try(token(2, time.Now().Add(time.Hour)))
		wantReason(t, err, codes.Unavailable, access.ReasonReviewFailed)
		expect(30*time.Minute, 6)
		time.Sleep(20 * time.Minute)
		_, err = s.try(held)
		wantReason(t, err, codes.Unauthenticated, access.ReasonTokenExpired)
		s.away = nil
		if _, err := s.try(token(3, time.Now().Add(time.Hour))); err != nil || len(s.problems) != 0 {
			t.Errorf("the API server is back: %v, problems %v", err, s.problems)
		}
		if stale := testutil.ToFloat64(s.metrics.hits.WithLabelValues("token", "stale")); stale != 4 {
			t.Errorf("%v stale answers counted; want 4", stale)
		}
	})
}

// TestRejectedReview: a rejection is remembered briefly, and what a calculator
// knew does not outlive it.
func TestRejectedReview(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		held := token(1, time.Now().Add(time.Hour))
		if _, err := s.try(held); err != nil {
			t.Fatal(err)
		}
		time.Sleep(tokenFreshFor)
		s.answer = func(status *authenticationv1.TokenReviewStatus) { status.Error = "the pod is gone" }
		for range 3 {
			_, err := s.try(held)
			wantReason(t, err, codes.Unauthenticated, access.ReasonTokenRejected)
			if !strings.Contains(err.Error(), "the pod is gone") {
				t.Errorf("%v does not say why", err)
			}
		}
		if s.asked() != 2 {
			t.Errorf("%d reviews; want 2", s.asked())
		}
		time.Sleep(rejectedFor)
		s.away = errors.New("away")
		_, err := s.try(held)
		wantReason(t, err, codes.Unavailable, access.ReasonReviewFailed)
	})
}

// TestManyAtOnce: a thousand agents that connect at once cost a bounded number
// of reviews at a time, and one token one review.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.delay = 5 * time.Millisecond
		var wait sync.WaitGroup
		for id := range 1000 {
			held := token(id, time.Now().Add(time.Hour))
			for range 2 {
				wait.Go(func() {
					if _, err := s.try(held); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wait.Wait()
		if s.reviews != 1000 || s.most > parallelReviews {
			t.Errorf("%d reviews, up to %d at a time; want 1000, up to %d", s.reviews, s.most, parallelReviews)
		}
	})
}

// TestNoTurn: who waits too long for a review is told to come again.
func TestNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.delay = 2 * turnWait
		var wait sync.WaitGroup
		var mu sync.Mutex
		outcomes := map[string]int{}
		for id := range parallelReviews + 5 {
			wait.Go(func() {
				_, err := s.try(token(id, time.Now().Add(time.Hour)))
				mu.Lock()
				defer mu.Unlock()
				outcomes[access.ReasonOf(err)]++
			})
		}
		wait.Wait()
		if outcomes[access.ReasonReviewBusy] != 5 || outcomes[""] != parallelReviews {
			t.Errorf("%v; want 5 that did not get their turn", outcomes)
		}
	})
}

// TestScreen: what cannot pass a review costs none.
func TestScreen(t *testing.T) {
	s := newServer()
	now := time.Now()
	for _, c := range []struct{ token, reason string }{
		{"nonsense", access.ReasonTokenMalformed},
		{"a.!!.c", access.ReasonTokenMalformed},
		{"a." + base64.RawURLEncoding.EncodeToString([]byte("{")) + ".c", access.ReasonTokenMalformed},
		{strings.Repeat("x", longestToken+1), access.ReasonTokenMalformed},
		{jwt(`{"aud":"here"}`), access.ReasonTokenMalformed},
		{jwt(`{"aud":"here","exp":1e300}`), access.ReasonTokenMalformed},
		{jwt(`{"aud":["there"],"exp":1}`), access.ReasonForeignAudience},
		{jwt(`{"exp":1}`), access.ReasonForeignAudience},
		{token(1, now.Add(-2*skew)), access.ReasonTokenExpired},
	} {
		_, err := s.try(c.token)
		wantReason(t, err, codes.Unauthenticated, c.reason)
	}
	for _, headers := range [][]string{{"Basic abc"}, {"Bearer a", "Bearer b"}} {
		_, err := s.authenticate(call(headers...))
		wantReason(t, err, codes.Unauthenticated, access.ReasonTokenMalformed)
	}
	_, err := s.authenticate(call())
	wantReason(t, err, codes.Unauthenticated, access.ReasonNoCredential)
	plain := peer.NewContext(call(access.Bearer(token(1, now.Add(time.Hour)))), &peer.Peer{Addr: &net.TCPAddr{}})
	_, err = s.authenticate(plain)
	wantReason(t, err, codes.Unauthenticated, access.ReasonNoCredential)
	if s.asked() != 0 {
		t.Errorf("%d reviews; want none", s.asked())
	}
	if _, err := s.try(jwt(fmt.Sprintf(`{"aud":"here","exp":%d}`, now.Add(time.Hour).Unix()))); err != nil {
		t.Errorf("an audience that is no list: %v", err)
	}
}

// TestIdentify: only the agents' account with a pod on a node is an agent.
func TestIdentify(t *testing.T) {
	s := newServer()
	bound := map[string]authenticationv1.ExtraValue{extraNode: {"n1"}, extraPod: {"p"}}
	for name, c := range map[string]struct {
		user    authenticationv1.UserInfo
		kind    access.Kind
		unbound bool
	}{
		"agent":         {authenticationv1.UserInfo{Username: agentUser, Extra: bound}, access.Agent, false},
		"no node":       {authenticationv1.UserInfo{Username: agentUser, Extra: map[string]authenticationv1.ExtraValue{extraPod: {"p"}}}, access.Account, true},
		"no pod":        {authenticationv1.UserInfo{Username: agentUser, Extra: map[string]authenticationv1.ExtraValue{extraNode: {"n1"}}}, access.Account, true},
		"other account": {authenticationv1.UserInfo{Username: agentUser + "2", Extra: bound}, access.Account, false},
	} {
		caller := s.identify(c.user)
		if caller.Kind != c.kind || caller.Unbound != c.unbound || (caller.Node != "") != (c.kind == access.Agent) {
			t.Errorf("%s: %+v", name, caller)
		}
	}
	s.answer = func(status *authenticationv1.TokenReviewStatus) { status.Authenticated = true }
	_, err := s.try(token(9, time.Now().Add(time.Hour)))
	wantReason(t, err, codes.Unauthenticated, access.ReasonForeignAudience)
}

// TestPermit: the API server is asked with everything that it said of the
// account, and its answer is remembered.
func TestPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.allow = func(spec authorizationv1.SubjectAccessReviewSpec) bool {
			return spec.User == "u" && slices.Equal(spec.Groups, []string{"g"}) && spec.Extra["e"][0] == "v" &&
				*spec.NonResourceAttributes == authorizationv1.NonResourceAttributes{Path: "/s/M", Verb: "get"}
		}
		caller := access.Caller{Kind: access.Account, Name: "u", Groups: []string{"g"}, Extra: map[string][]string{"e": {"v"}}}
		expect := func(reviews int) {
			t.Helper()
			if err := s.permit(context.Background(), caller, "get", "/s/M"); err != nil || s.asked() != reviews {
				t.Errorf("%v after %d reviews; want it allowed after %d", err, s.asked(), reviews)
			}
		}
		expect(1)
		time.Sleep(allowedFor - time.Second)
		expect(1)
		time.Sleep(2 * time.Second)
		expect(2)
		wantReason(t, s.permit(context.Background(), caller, "get", "/s/N"), codes.PermissionDenied, access.ReasonNotAllowed)
		s.away = errors.New("away")
		time.Sleep(allowedFor + time.Second)
		expect(4)
		time.Sleep(allowedAway)
		wantReason(t, s.permit(context.Background(), caller, "get", "/s/M"), codes.Unavailable, access.ReasonReviewFailed)
	})
}

// TestBoundedMemory: many tokens do not make what is remembered grow without
// bound, and rejections push out no answers.
func TestBoundedMemory(t *testing.T) {
	s := newServer()
	good := token(-1, time.Now().Add(time.Hour))
	if _, err := s.try(good); err != nil {
		t.Fatal(err)
	}
	s.answer = func(*authenticationv1.TokenReviewStatus) {}
	for id := range maxRejections + 100 {
		if _, err := s.try(token(id, time.Now().Add(time.Hour))); err == nil {
			t.Fatal("a bad token is accepted")
		}
	}
	if n := len(s.tokens.rejected); n != maxRejections {
		t.Errorf("%d rejections are remembered; want %d", n, maxRejections)
	}
	if _, err := s.try(good); err != nil {
		t.Errorf("after many bad tokens: %v", err)
	}
}

// TestDenialsAreTold: each is counted, the same one logged once a minute.
func TestDenialsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		err := access.Deny(codes.PermissionDenied, access.ReasonForeignAccount, "no")
		for range 3 {
			s.Gate().Denied(call(), "/s/M", access.Caller{Kind: access.Account, Name: "mallory"}, err)
		}
		if n := testutil.ToFloat64(s.metrics.denied.WithLabelValues("/s/M", access.ReasonForeignAccount)); n != 3 {
			t.Errorf("%v denials counted; want 3", n)
		}
		if s.logs.Len() != 1 || s.logs.All()[0].ContextMap()["caller"] != "mallory" {
			t.Errorf("logged %v; want one line that names the caller", s.logs.All())
		}
		time.Sleep(denialEvery)
		s.Gate().Denied(call(), "/s/M", access.Caller{}, err)
		if s.logs.Len() != 2 {
			t.Errorf("%d lines logged; want another one after a minute", s.logs.Len())
		}
	})
}

func TestServiceAccount(t *testing.T) {
	if user, err := ServiceAccount("millrace-system:millrace-agent"); err != nil || user != agentUser {
		t.Errorf("%q, %v", user, err)
	}
	for _, bad := range []string{"", "a", "a:", ":b", "a:b:c", "a/b", "a b:c"} {
		if user, err := ServiceAccount(bad); err == nil {
			t.Errorf("%q: %q; want an error", bad, user)
		}
	}
}
