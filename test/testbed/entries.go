// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// MapEntries returns the entries of an agent's maps, "map key = value", but for
// those of maps whose name begins with one of the prefixes.
func (a *Agent) MapEntries(ctx context.Context, without []string) ([]string, error) {
	list, err := a.ListMaps(ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list maps: %w", err)
	}
	var all []string
	for _, state := range list.GetMaps() {
		if slices.ContainsFunc(without, func(prefix string) bool { return strings.HasPrefix(state.GetName(), prefix) }) {
			continue
		}
		stream, err := a.DumpMap(ctx, &agentv1.DumpMapRequest{Name: state.GetName()})
		if err != nil {
			return nil, fmt.Errorf("dump %s: %w", state.GetName(), err)
		}
		for {
			entry, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("dump %s: %w", state.GetName(), err)
			}
			all = append(all, state.GetName()+" "+entry.GetKey()+" = "+entry.GetValue())
		}
	}
	return all, nil
}
