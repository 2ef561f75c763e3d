// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// Problems collects what is wrong with the source and its objects. A problem
// is logged when it appears and when it is gone, and counted in a metric by
// the kind of its object while it lasts.
type Problems struct {
	log   *zap.Logger
	gauge *prometheus.GaugeVec

	mu      sync.Mutex
	objects map[model.Key][]problem.Problem
	parts   map[string][]problem.Problem
	// present counts by how many places a problem is held.
	present map[problem.Problem]int
}

// NewProblems returns an empty collection.
func NewProblems(log *zap.Logger, registry prometheus.Registerer) *Problems {
	p := &Problems{
		log: log,
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "millrace", Subsystem: "calculator", Name: "problems",
			Help: "Problems with objects, manifests and watches, by kind."}, []string{"kind"}),
		objects: map[model.Key][]problem.Problem{},
		parts:   map[string][]problem.Problem{},
		present: map[problem.Problem]int{},
	}
	for _, kind := range model.Kinds() {
		p.gauge.WithLabelValues(string(kind)) // series exist at 0
	}
	registry.MustRegister(p.gauge, &problemCollector{problems: p,
		desc: prometheus.NewDesc("millrace_calculator_problem",
			fmt.Sprintf("Objects and fields with a problem, each 1; the first %d alone.", maxProblemSeries),
			[]string{"kind", "namespace", "name", "field"}, nil)})
	return p
}

// setObjects replaces the problems of objects.
func (p *Problems) setObjects(objects []graph.ObjectProblems) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, object := range objects {
		replace(p, p.objects, object.Object, object.Problems)
	}
}

// setPart replaces the problems of a part of the source.
func (p *Problems) setPart(part string, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	replace(p, p.parts, part, problems)
}

// replace exchanges the problems of one holder.
func replace[K comparable](p *Problems, holders map[K][]problem.Problem, holder K, problems []problem.Problem) {
	old := holders[holder]
	if len(problems) == 0 {
		delete(holders, holder)
	} else {
		holders[holder] = problems
	}
	for _, one := range problems {
		p.present[one]++
		if p.present[one] == 1 {
			p.log.Warn("problem", append(place(one), zap.String("message", one.Message))...)
			p.gauge.WithLabelValues(string(one.Object.Kind)).Inc()
		}
	}
	for _, one := range old {
		p.present[one]--
		if p.present[one] == 0 {
			delete(p.present, one)
			p.log.Info("problem is gone", place(one)...)
			p.gauge.WithLabelValues(string(one.Object.Kind)).Dec()
		}
	}
}

// place names the object and field that a problem is about.
func place(one problem.Problem) []zap.Field {
	fields := []zap.Field{zap.String("kind", string(one.Object.Kind)), zap.String("name", one.Object.Name)}
	if one.Object.Namespace != "" {
		fields = append(fields, zap.String("namespace", one.Object.Namespace))
	}
	if one.Field != "" {
		fields = append(fields, zap.String("field", one.Field))
	}
	return fields
}

// List returns all problems, sorted by object and field.
func (p *Problems) List() []problem.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]problem.Problem, 0, len(p.present))
	for one := range p.present {
		list = append(list, one)
	}
	slices.SortFunc(list, problem.Problem.Compare)
	return list
}

// maxProblemSeries bounds what a cluster full of problems costs a metrics
// store. How many there are in all is told by the count.
const maxProblemSeries = 100

// problemCollector names objects and fields with a problem when somebody asks.
type problemCollector struct {
	problems *Problems
	desc     *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *problemCollector) Describe(descs chan<- *prometheus.Desc) { descs <- c.desc }

// Collect implements prometheus.Collector.
func (c *problemCollector) Collect(out chan<- prometheus.Metric) {
	seen := map[[4]string]bool{} // a field may have several problems
	for _, one := range c.problems.List() {
		labels := [4]string{string(one.Object.Kind), one.Object.Namespace, one.Object.Name, one.Field}
		for i, label := range labels {
			labels[i] = strings.ToValidUTF8(label, "\uFFFD") // the name of a file may be anything
		}
		if seen[labels] {
			continue
		}
		if len(seen) == maxProblemSeries {
			return
		}
		seen[labels] = true
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1, labels[:]...)
	}
}
