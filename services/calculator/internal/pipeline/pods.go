// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"strings"
	"sync"

	"github.com/millrace-project/millrace/calc/endpoints"
	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

// pods has the pods that are on a node and are no endpoints, as they have no
// address that can be used yet or have ended: nodes tell of them before, and
// after, there is a resource of them. All others are found among the resources.
type pods struct {
	mu    sync.RWMutex
	known map[model.Key]publish.PodState
}

func (p *pods) note(changes []graph.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, change := range changes {
		key := change.Key
		pod, ok := change.Object.(*model.Pod)
		if ok {
			key = pod.Key()
		}
		if key.Kind != model.KindPod {
			continue
		}
		if !ok || pod.NodeName == "" || pod.HostNetwork || isEndpoint(pod) {
			delete(p.known, key)
			continue
		}
		if p.known == nil {
			p.known = map[model.Key]publish.PodState{}
		}
		p.known[key] = publish.PodState{UID: pod.UID, Node: pod.NodeName}
	}
}

func isEndpoint(pod *model.Pod) bool {
	content, _ := endpoints.Build(pod)
	return content != nil
}

// Pod returns a pod, by "namespace/name", that is no endpoint.
func (p *Pipeline) Pod(key string) (publish.PodState, bool) {
	namespace, name, _ := strings.Cut(key, "/")
	p.pods.mu.RLock()
	defer p.pods.mu.RUnlock()
	state, ok := p.pods.known[model.Key{Kind: model.KindPod, Namespace: namespace, Name: name}]
	return state, ok
}
