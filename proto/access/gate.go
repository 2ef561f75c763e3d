// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Gate stands before all RPCs of a listener.
type Gate struct {
	// Authenticate says who calls, or refuses. A Gate without it takes everybody
	// for anonymous.
	Authenticate func(ctx context.Context) (Caller, error)
	// Permit asks the cluster's authorizers whether an account may, and returns
	// nil if so. Without it no account is a reader.
	Permit func(ctx context.Context, caller Caller, verb, method string) error
	// Denied is told of each refused call. It may be nil.
	Denied func(ctx context.Context, method string, caller Caller, err error)
}

// Local is the gate of a listener that only operators can reach.
func Local() *Gate {
	return &Gate{Authenticate: func(context.Context) (Caller, error) { return Caller{Kind: Operator}, nil }}
}

// Options put the gate before a server's RPCs.
func (g *Gate) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			caller, err := g.admit(ctx, info.FullMethod)
			if err != nil {
				return nil, err
			}
			return handler(WithCaller(ctx, caller), request)
		}),
		grpc.ChainStreamInterceptor(func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			caller, err := g.admit(stream.Context(), info.FullMethod)
			if err != nil {
				return err
			}
			return handler(server, &admitted{ServerStream: stream, ctx: WithCaller(stream.Context(), caller)})
		}),
	}
}

// admitted is a stream whose context names the caller.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (a *admitted) Context() context.Context { return a.ctx }

// admit lets a call through or says why not.
func (g *Gate) admit(ctx context.Context, method string) (caller Caller, err error) {
	defer func() {
		if err != nil && g.Denied != nil {
			g.Denied(ctx, method, caller, err)
		}
	}()
	rule, ok := RuleOf(method)
	if !ok {
		return Caller{}, Deny(codes.PermissionDenied, ReasonNoRule, "no rule says who may call %s", method)
	}
	if rule.Allows(Anonymous) {
		// Nothing that could be found out would change the answer.
		return Caller{}, nil
	}
	if g.Authenticate == nil {
		return Caller{}, Deny(codes.Unauthenticated, ReasonNoCredential, "%s is not for anonymous callers", method)
	}
	if caller, err = g.Authenticate(ctx); err != nil {
		return caller, err
	}
	return g.authorize(ctx, rule, caller)
}

func (g *Gate) authorize(ctx context.Context, rule Rule, caller Caller) (Caller, error) {
	switch {
	case rule.Allows(caller.Kind):
		return caller, nil
	case caller.Kind == Anonymous:
		return caller, Deny(codes.Unauthenticated, ReasonNoCredential, "%s is not for anonymous callers", rule.Method)
	case caller.Kind == Account && rule.Allows(Reader):
		if g.Permit == nil {
			break
		}
		if err := g.Permit(ctx, caller, rule.Verb, rule.Method); err != nil {
			return caller, err
		}
		caller.Kind = Reader
		return caller, nil
	case caller.Unbound && rule.Allows(Agent):
		return caller, Deny(codes.PermissionDenied, ReasonTokenUnbound,
			"the token of %s is not bound to a pod on a node, so that it says nothing about whose it is", caller)
	case caller.Kind == Account && rule.Allows(Agent):
		return caller, Deny(codes.PermissionDenied, ReasonForeignAccount, "%s is for agents; %s is none", rule.Method, caller)
	}
	return caller, Deny(codes.PermissionDenied, ReasonNotAllowed, "%s may not call %s", caller, rule.Method)
}

// NodeOf returns the node that a caller may ask about: an agent's own, and for
// an operator the one it says.
func NodeOf(ctx context.Context, claimed string) (string, error) {
	caller, ok := CallerOf(ctx)
	switch {
	case ok && caller.Kind == Operator:
		return claimed, nil
	case !ok || caller.Kind != Agent || caller.Node == "":
		return "", Deny(codes.PermissionDenied, ReasonNotAllowed, "%s is no node's agent", caller)
	case claimed != "" && claimed != caller.Node:
		return "", Deny(codes.PermissionDenied, ReasonForeignNode,
			"field hello.node_name: %q, but the credential is of node %q", claimed, caller.Node)
	}
	return caller.Node, nil
}
