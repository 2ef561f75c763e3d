// SPDX-License-Identifier: Apache-2.0

// Package access says who may call which RPC of Millrace's servers, and lets
// nobody else through. Every server has a Gate, every RPC a row in one table;
// what has no row is refused.
package access

import (
	"context"
	"strings"
)

// Kind is a kind of caller.
type Kind uint8

// The kinds of callers. Each call has exactly one.
const (
	// Anonymous has shown no credential.
	Anonymous Kind = iota
	// Account is an account that the cluster knows and that nobody has granted
	// anything.
	Account
	// Reader is an account that the cluster's authorizers allow the RPC.
	Reader
	// Agent is the agent of one node.
	Agent
	// Operator is whoever may open a server's unix socket: root on its machine.
	Operator
)

var kindNames = [...]string{"anonymous", "account", "reader", "agent", "operator"}

// Kinds returns all kinds, from the least trusted to the most.
func Kinds() []Kind { return []Kind{Anonymous, Account, Reader, Agent, Operator} }

// String is the kind's name.
func (k Kind) String() string { return kindNames[k] }

// Caller is who calls.
type Caller struct {
	Kind Kind
	// Name is the name of the account, "system:serviceaccount:NAMESPACE:NAME" for
	// one of pods; empty for anonymous callers and operators.
	Name string
	// UID, Groups and Extra are what else the cluster says of the account.
	UID    string
	Groups []string
	Extra  map[string][]string
	// Node and Pod are an agent's, empty for others.
	Node, Pod string
	// Unbound tells that the account is the agents', but the token is of no pod
	// on a node, so that nobody knows whose it is.
	Unbound bool
}

// String names the caller for logs.
func (c Caller) String() string {
	switch {
	case c.Node != "" && c.Pod != "":
		return "agent of node " + c.Node + " (pod " + c.Pod + ")"
	case c.Node != "":
		return "agent of node " + c.Node
	case c.Name != "":
		return c.Name
	}
	return c.Kind.String()
}

type callerKey struct{}

// WithCaller returns a context that names the caller.
func WithCaller(ctx context.Context, caller Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// CallerOf returns who calls; false if the context is not of a call that a Gate
// let through.
func CallerOf(ctx context.Context) (Caller, bool) {
	caller, ok := ctx.Value(callerKey{}).(Caller)
	return caller, ok
}

// bearer is the scheme of the authorization header.
const bearer = "bearer "

// Header is the metadata that carries a token.
const Header = "authorization"

// Bearer returns the value of Header for a token.
func Bearer(token string) string { return "Bearer " + token }

// Token returns the token of a value of Header; false if it is of another
// scheme.
func Token(header string) (string, bool) {
	if len(header) <= len(bearer) || !strings.EqualFold(header[:len(bearer)], bearer) {
		return "", false
	}
	return strings.TrimSpace(header[len(bearer):]), true
}
