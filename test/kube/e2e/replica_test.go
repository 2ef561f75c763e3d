// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// replica is one of several calculators, which a test starts and ends.
type replica struct {
	calculatorv1.CalculatorServiceClient
	calculator
	f          *fixture
	name       string
	kubeconfig string
	port       uint16
	args       []string
}

// newReplica describes the n-th calculator; it does not run yet.
func (f *fixture) newReplica(t *testing.T, n int, kubeconfig string) *replica {
	t.Helper()
	port := uint16(testbed.CalculatorPort + n)
	r := &replica{
		f: f, name: fmt.Sprint("calculator-", n), kubeconfig: kubeconfig, port: port, args: []string{"--insecure"},
		calculator: calculator{address: netip.AddrPortFrom(f.Control.IPv4, port).String(), metricsPort: testbed.MetricsPort + n},
	}
	conn, err := grpc.NewClient("unix:"+r.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.CalculatorServiceClient = calculatorv1.NewCalculatorServiceClient(conn)
	return r
}

func (r *replica) socket() string { return filepath.Join(r.f.Dir, r.name+".sock") }

func (r *replica) start(t *testing.T) {
	t.Helper()
	var err error
	r.process, err = r.f.Control.Start(r.name, append([]string{binaries.Calculator,
		"--source", "kube", "--kubeconfig", r.kubeconfig,
		"--listen", fmt.Sprintf("0.0.0.0:%d", r.port), "--socket", r.socket(),
		"--metrics-listen", fmt.Sprintf("127.0.0.1:%d", r.metricsPort),
		"--drain-time", "100ms", "--drain-grace", "500ms"}, r.args...)...)
	if err != nil {
		t.Fatal(err)
	}
}

// startSynced starts the calculator and waits until it has read everything.
func (r *replica) startSynced(ctx context.Context, t *testing.T) {
	t.Helper()
	r.start(t)
	r.await(ctx, t, "it has read everything", func(s *calculatorv1.GetStatusResponse) bool { return s.GetSynced() })
}

func (r *replica) kill(t *testing.T) {
	t.Helper()
	if err := r.process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// await waits until something holds of the calculator's status.
func (r *replica) await(ctx context.Context, t *testing.T, what string, holds func(*calculatorv1.GetStatusResponse) bool) {
	t.Helper()
	var last *calculatorv1.GetStatusResponse
	err := testbed.Eventually(ctx, func() error {
		if err := r.process.Running(); err != nil {
			return err
		}
		status, err := r.GetStatus(ctx, &calculatorv1.GetStatusRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		if last = status; !holds(status) {
			return errors.New("it does not")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: that %s: %v; its status is %v and its log ends with\n%s", r.name, what, err, last, r.process.LogTail(15))
	}
}

// awaitProblem waits until the calculator reports a problem of the object that
// contains the words, and returns its message.
func (r *replica) awaitProblem(ctx context.Context, t *testing.T, kind, name string, words ...string) string {
	t.Helper()
	var message string
	r.await(ctx, t, fmt.Sprintf("there is a problem with %s %s about %q", kind, name, words), func(s *calculatorv1.GetStatusResponse) bool {
		return slices.ContainsFunc(s.GetProblems(), func(p *calculatorv1.Problem) bool {
			message = p.GetMessage()
			return p.GetKind() == kind && p.GetName() == name && !slices.ContainsFunc(words, func(word string) bool {
				return !strings.Contains(message, word)
			})
		})
	})
	return message
}

// awaitEnd waits until the calculator has ended by itself, saying why.
func (r *replica) awaitEnd(ctx context.Context, t *testing.T, why ...string) {
	t.Helper()
	select {
	case <-r.process.Done():
	case <-ctx.Done():
		t.Fatalf("%s has not ended; its log ends with\n%s", r.name, r.process.LogTail(15))
	}
	last := r.process.LogTail(3)
	for _, word := range why {
		if !strings.Contains(last, word) {
			t.Errorf("the last lines of %s do not contain %q:\n%s", r.name, word, last)
		}
	}
}

// refusals is how many streams the calculator refused for knowing less.
func (r *replica) refusals(ctx context.Context, t *testing.T) float64 {
	t.Helper()
	count, err := r.series(ctx, r.f, `millrace_calculator_streams_ended_total{reason="BEHIND_POSITION"}`)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// awaitRefused waits until the calculator has refused each of that many agents.
func (r *replica) awaitRefused(ctx context.Context, t *testing.T, before float64) {
	t.Helper()
	if err := testbed.Eventually(ctx, func() error {
		if now := r.refusals(ctx, t); now < before+float64(len(r.f.agents)) {
			return fmt.Errorf("%s has refused %v streams", r.name, now-before)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// awaitWords waits until what is taken from an agent's status has all of these
// words.
func awaitWords(ctx context.Context, agent *testbed.Agent, taken func(*agentv1.GetStatusResponse) string, words ...string) error {
	var text string
	err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		text = taken(status)
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("no %q", word)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("agent of %s: %w in what it tells: %s", agent.Node.Name, err, text)
	}
	return nil
}

func lastError(s *agentv1.GetStatusResponse) string { return s.GetCalculator().GetLastError() }

// awaitLastError waits until every agent tells of an error with these words.
func (f *fixture) awaitLastError(ctx context.Context, t *testing.T, words ...string) {
	t.Helper()
	for _, agent := range f.agents {
		if err := awaitWords(ctx, agent, lastError, words...); err != nil {
			t.Fatal(err)
		}
	}
}

// addressesOf are the addresses of calculators, sorted.
func addressesOf(calculators []*replica) []string {
	var all []string
	for _, r := range calculators {
		all = append(all, r.address)
	}
	slices.Sort(all)
	return all
}

// awaitAgents waits until every agent is in sync with the calculator.
func (r *replica) awaitAgents(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, agent := range r.f.agents {
		if err := r.f.waitConnected(ctx, agent, r.address); err != nil {
			t.Fatalf("%v; the log of %s ends with\n%s", err, r.name, r.process.LogTail(10))
		}
	}
}

// restartAgents kills the agents and starts them with these calculators.
func (f *fixture) restartAgents(t *testing.T, calculators ...*replica) {
	t.Helper()
	options := testbed.AgentOptions{Binaries: binaries}
	for _, r := range calculators {
		options.Calculators = append(options.Calculators, r.address)
	}
	for i, agent := range f.agents {
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		var err error
		if f.agents[i], err = f.StartAgent(agent.Node, options); err != nil {
			t.Fatal(err)
		}
	}
}

// traffic dials a service all the time, each time by a new connection, and
// notes every failure and every answer of somebody who should not answer.
type traffic struct {
	mu sync.Mutex
	// allowed are the sets of those who might answer, since the dial under way
	// began: the first one then, the last one now.
	allowed [][]string
	wrong   []string
	count   int
	stop    chan struct{}
	stopped chan struct{}
}

// dial begins traffic that ends, and is judged, with the test.
func (f *fixture) dial(t *testing.T, client *testbed.Host, target netip.AddrPort, servers ...string) *traffic {
	t.Helper()
	prober, err := f.Probe(client, binaries)
	if err != nil {
		t.Fatal(err)
	}
	d := &traffic{stop: make(chan struct{}), stopped: make(chan struct{})}
	d.allow(servers...)
	go d.run(prober, target)
	t.Cleanup(func() {
		close(d.stop)
		<-d.stopped
		t.Logf("%d connections were made", d.count)
		if len(d.wrong) > 0 {
			t.Errorf("%d of %d connections went wrong, first: %s", len(d.wrong), d.count, d.wrong[0])
		}
		if d.count < 100 {
			t.Errorf("only %d connections were made", d.count)
		}
	})
	return d
}

func (d *traffic) run(prober *testbed.Prober, target netip.AddrPort) {
	defer close(d.stopped)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
		}
		d.begin()
		answer, err := prober.Once(probe.Dial{Network: probe.TCP, Target: target}, probe.Exchange{})
		d.mu.Lock()
		d.count++
		if err != nil {
			d.wrong = append(d.wrong, err.Error())
		} else if answer.Failure != probe.None {
			d.wrong = append(d.wrong, fmt.Sprintf("at %v: %s %s", time.Now().Format(time.TimeOnly), answer.Failure, answer.Detail))
		} else if !d.mayAnswer(answer.Server) {
			d.wrong = append(d.wrong, fmt.Sprintf("at %v: %s answered; since the dial began these might: %v",
				time.Now().Format(time.TimeOnly), answer.Server, d.allowed))
		}
		d.mu.Unlock()
	}
}

// begin forgets who might answer before the dial that begins.
func (d *traffic) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.allowed = d.allowed[len(d.allowed)-1:]
}

// mayAnswer tells whether a server might answer at any time of the dial under
// way: its backend was chosen somewhere between its beginning and its end.
func (d *traffic) mayAnswer(server string) bool {
	return slices.ContainsFunc(d.allowed, func(servers []string) bool { return slices.Contains(servers, server) })
}

// allow says who may answer from now on.
func (d *traffic) allow(servers ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.allowed = append(d.allowed, servers)
}

// TestMayAnswer narrows and widens who may answer during one dial.
func TestMayAnswer(t *testing.T) {
	var d traffic
	d.allow("a", "b")
	d.begin()
	d.allow("a")
	d.allow("c")
	for server, want := range map[string]bool{"a": true, "b": true, "c": true, "d": false} {
		if d.mayAnswer(server) != want {
			t.Errorf("%s might answer: %v, want %v", server, !want, want)
		}
	}
	d.begin()
	for server, want := range map[string]bool{"a": false, "b": false, "c": true} {
		if d.mayAnswer(server) != want {
			t.Errorf("%s may answer the next dial: %v, want %v", server, !want, want)
		}
	}
}
