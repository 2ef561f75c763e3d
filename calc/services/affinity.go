// SPDX-License-Identifier: Apache-2.0

package services

import (
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// maxAffinityTimeout is a day, as for the API server.
const maxAffinityTimeout int32 = 86400

// parseAffinity gives for how many seconds a client keeps its backend, 0 if it
// keeps none.
func parseAffinity(object *model.Service, problems *problem.List) uint32 {
	switch object.SessionAffinity {
	case "", "None":
		return 0
	case "ClientIP":
	default:
		problems.Add("spec.sessionAffinity", "%q is not a session affinity (None, ClientIP): treated as None", object.SessionAffinity)
		return 0
	}
	timeout := model.DefaultAffinityTimeout
	if object.AffinityTimeout != nil {
		timeout = *object.AffinityTimeout
	}
	if timeout < 1 || timeout > maxAffinityTimeout {
		problems.Add("spec.sessionAffinityConfig.clientIP.timeoutSeconds",
			"%d is not a number of seconds that a client can keep its backend for (1 to %d): treated as %d",
			timeout, maxAffinityTimeout, model.DefaultAffinityTimeout)
		timeout = model.DefaultAffinityTimeout
	}
	return uint32(timeout)
}
