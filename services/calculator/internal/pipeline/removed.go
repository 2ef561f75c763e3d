// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"github.com/millrace-project/millrace/calc/graph"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// removed stands for a resource of which only the name is left.
func removed(name graph.Name) *dataplanev1.Resource {
	return &dataplanev1.Resource{Name: name.Proto()}
}
