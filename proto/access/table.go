// SPDX-License-Identifier: Apache-2.0

package access

import "slices"

// Get is the verb that a cluster's authorizers are asked for, of the
// non-resource URL that is the RPC's full name.
const Get = "get"

// Rule says who may call an RPC.
type Rule struct {
	// Method is the full name, "/package.Service/Method".
	Method string
	// Callers are the kinds that may.
	Callers []Kind
	// Verb is what a Reader must be allowed.
	Verb string
}

// Allows tells whether callers of a kind may call.
func (r Rule) Allows(kind Kind) bool { return slices.Contains(r.Callers, kind) }

// rules is the table. Whoever may read more than the agent of one node gets it
// granted by the cluster's administrator (Reader); what changes a node is for
// those who are on it.
var rules = []Rule{
	// Of the calculator. An agent is given its own node's resources, whatever
	// name it says.
	{"/millrace.dataplane.v1.SyncService/Sync", []Kind{Agent, Operator}, ""},
	{"/millrace.calculator.v1.CalculatorService/GetStatus", []Kind{Reader, Operator}, Get},
	{"/millrace.calculator.v1.CalculatorService/ListNodes", []Kind{Reader, Operator}, Get},
	{"/millrace.calculator.v1.CalculatorService/DumpNode", []Kind{Reader, Operator}, Get},

	// For agents, about who calls them and how they serve.
	{"/millrace.calculator.v1.AccessService/ReviewAccess", []Kind{Agent}, ""},
	{"/millrace.calculator.v1.AccessService/SignCertificate", []Kind{Agent}, ""},

	// Of the agent.
	{"/millrace.agent.v1.AgentService/GetStatus", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/ListServices", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/ListEndpoints", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/ListConntrack", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/ListAffinities", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/ListMaps", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/DumpMap", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/DiffDesired", []Kind{Reader, Operator}, Get},
	{"/millrace.agent.v1.AgentService/GrowMap", []Kind{Operator}, ""},
	{"/millrace.agent.v1.AgentService/Repair", []Kind{Operator}, ""},
	// The CNI plugin runs on the node as root.
	{"/millrace.agent.v1.EndpointService/AddEndpoint", []Kind{Operator}, ""},
	{"/millrace.agent.v1.EndpointService/DeleteEndpoint", []Kind{Operator}, ""},
	{"/millrace.agent.v1.EndpointService/CheckEndpoint", []Kind{Operator}, ""},
	{"/millrace.agent.v1.EndpointService/RetainEndpoints", []Kind{Operator}, ""},

	// Of both. A health check tells no more than whether the process serves,
	// which an open port tells too, and load balancers show no credential. One
	// that goes on takes a stream.
	{"/grpc.health.v1.Health/Check", []Kind{Anonymous, Account, Reader, Agent, Operator}, Get},
	{"/grpc.health.v1.Health/List", []Kind{Reader, Operator}, Get},
	{"/grpc.health.v1.Health/Watch", []Kind{Reader, Operator}, Get},
	{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", []Kind{Reader, Operator}, Get},
	{"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", []Kind{Reader, Operator}, Get},
	// Channelz tells of every connection and its peer.
	{"/grpc.channelz.v1.Channelz/GetTopChannels", []Kind{Operator}, ""},
	{"/grpc.channelz.v1.Channelz/GetServers", []Kind{Operator}, ""},
	{"/grpc.channelz.v1.Channelz/GetServer", []Kind{Operator}, ""},
	{"/grpc.channelz.v1.Channelz/GetServerSockets", []Kind{Operator}, ""},
	{"/grpc.channelz.v1.Channelz/GetChannel", []Kind{Operator}, ""},
	{"/grpc.channelz.v1.Channelz/GetSubchannel", []Kind{Operator}, ""},
	{"/grpc.channelz.v1.Channelz/GetSocket", []Kind{Operator}, ""},
}

var byMethod = func() map[string]Rule {
	table := make(map[string]Rule, len(rules))
	for _, rule := range rules {
		table[rule.Method] = rule
	}
	return table
}()

// Rules returns the whole table.
func Rules() []Rule { return slices.Clone(rules) }

// RuleOf returns the rule of an RPC; false if there is none, so that nobody may
// call it.
func RuleOf(method string) (Rule, bool) {
	rule, ok := byMethod[method]
	return rule, ok
}
