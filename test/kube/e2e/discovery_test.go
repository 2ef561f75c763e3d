// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/certs"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability/skew"
	"github.com/millrace-project/millrace/test/testbed"
)

// mount is the calculators' ConfigMap as a node's kubelet mounts it: files are
// links into a directory that is exchanged as a whole, by renaming a link.
type mount struct {
	f   *fixture
	dir string
	n   int
}

func (f *fixture) newMount(t *testing.T) *mount { return &mount{f: f, dir: t.TempDir()} }

// sync brings what the API server has, as the kubelet does once a minute or so.
func (m *mount) sync(ctx context.Context, t *testing.T) {
	t.Helper()
	addresses, authorities := m.f.announced(ctx, t)
	m.set(t, map[string]string{"calculators": strings.Join(addresses, "\n") + "\n", "ca.crt": string(authorities)})
}

func (m *mount) set(t *testing.T, files map[string]string) {
	t.Helper()
	m.n++
	content := fmt.Sprintf("..content-%d", m.n)
	errs := []error{os.Mkdir(filepath.Join(m.dir, content), 0o755)}
	for name, text := range files {
		errs = append(errs, os.WriteFile(filepath.Join(m.dir, content, name), []byte(text), 0o644))
	}
	errs = append(errs, os.Symlink(content, filepath.Join(m.dir, "..data_tmp")),
		os.Rename(filepath.Join(m.dir, "..data_tmp"), filepath.Join(m.dir, "..data")))
	for name := range files {
		if _, err := os.Lstat(filepath.Join(m.dir, name)); err != nil {
			errs = append(errs, os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// writeFile writes a file of that name to a directory of its own.
func writeFile(t *testing.T, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What the agents of the nodes know calculators by at first.
const (
	byMount    = iota // the ConfigMap
	byMountToo        // the same
	byLog             // one address and the authority, from the command line
	byStatic          // the same and of the previous release, all addresses
)

// discovery is a cluster whose agents find and trust calculators by what these
// announce.
type discoveryFixture struct {
	*fixture
	mounts    [2]*mount
	bootstrap string // file with the first authority
	clientCA  string
}

// TestDiscovery moves calculators and exchanges their authority while agents
// are connected, lost, or away.
func TestDiscovery(t *testing.T) {
	f := &discoveryFixture{fixture: startPlane(t, testbed.Options{Nodes: 4, PodsPerNode: 1})}
	ctx := harness.Limit(t, 4*time.Minute)
	users, err := certs.NewAuthority("users")
	if err != nil {
		t.Fatal(err)
	}
	f.clientCA = writeFile(t, "users.crt", users.PEM())
	first, second := f.calculatorAt(t, 0), f.calculatorAt(t, 1)
	f.startReady(ctx, t, first, second)
	f.awaitAnnounced(ctx, t, 1, first, second)
	_, authorities := f.announced(ctx, t)
	f.bootstrap = writeFile(t, "ca.crt", authorities)
	f.startAgents(ctx, t, users, first, second)
	f.awaitAll(ctx, t, first, second)
	for _, agent := range f.agents[:byStatic] {
		f.awaitKnown(ctx, t, agent, agentv1.Origin_ORIGIN_HELD, first, second)
	}
	f.awaitKnown(ctx, t, f.agents[byMount], agentv1.Origin_ORIGIN_MOUNTED, first, second)
	f.tellsByCommandLine(t, authorities)

	t.Run("one address left", func(t *testing.T) {
		f.end(ctx, t, first)
		f.awaitAll(ctx, t, second)
		// Also one that has to begin with its log.
		restart(t, f.agents[byLog])
		f.awaitAt(ctx, t, f.agents[byLog], second)
	})
	third, fourth := f.calculatorAt(t, 2), f.calculatorAt(t, 3)
	t.Run("all moved", func(t *testing.T) {
		f.end(ctx, t, second)
		f.startReady(ctx, t, third, fourth)
		f.awaitAnnounced(ctx, t, 1, third, fourth)
		for _, m := range f.mounts {
			m.sync(ctx, t)
		}
		f.awaitAt(ctx, t, f.agents[byMount], third, fourth)
		f.awaitAt(ctx, t, f.agents[byMountToo], third, fourth)
		// Those without the mount come back when one that they know does.
		f.startReady(ctx, t, second)
		f.awaitAll(ctx, t, second, third, fourth)
		f.awaitKnown(ctx, t, f.agents[byLog], agentv1.Origin_ORIGIN_HELD, second, third, fourth)
	})
	t.Run("authority exchanged", func(t *testing.T) { f.testExchanged(ctx, t, authorities, second, third, fourth) })
	t.Run("foreign authority", func(t *testing.T) { f.testForeign(ctx, t, second, third, fourth) })
	t.Run("bad entries", func(t *testing.T) {
		m := f.mounts[0]
		addresses, authorities := f.announced(ctx, t)
		m.set(t, map[string]string{"calculators": strings.Join(append(addresses, "nonsense", "10.0.0.1:0"), "\n"), "ca.crt": string(authorities) + "\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"})
		path := filepath.Join(m.dir, "calculators")
		f.awaitProblems(ctx, t, f.agents[byMount], path+": line "+fmt.Sprint(len(addresses)+1)+": ", path+": line "+fmt.Sprint(len(addresses)+2)+": ",
			filepath.Join(m.dir, "ca.crt")+": certificate 2: ")
		restart(t, f.agents[byMount])
		f.awaitAt(ctx, t, f.agents[byMount], second, third, fourth)
	})
}

// announceTime is how long a new authority is announced before it is used, here.
const announceTime = 3 * time.Second

// calculatorAt describes a calculator at an address of its own.
func (f *discoveryFixture) calculatorAt(t *testing.T, n int) *replica {
	t.Helper()
	return f.newTrusted(t, n, "--ca-announce-time", announceTime.String(), "--ca-lifetime", "1h", "--tls-client-ca", f.clientCA)
}

// startReady starts calculators at once, each of which is ready when it has read
// everything.
func (f *discoveryFixture) startReady(ctx context.Context, t *testing.T, calculators ...*replica) {
	t.Helper()
	for _, r := range calculators {
		f.apply(ctx, t, r.pod(false))
		r.start(t)
	}
	for _, r := range calculators {
		r.await(ctx, t, "it has read everything", func(s *calculatorv1.GetStatusResponse) bool { return s.GetSynced() })
		f.apply(ctx, t, r.pod(true))
	}
}

// end ends a calculator with its pod.
func (f *discoveryFixture) end(ctx context.Context, t *testing.T, r *replica) {
	t.Helper()
	r.kill(t)
	f.delete(ctx, t, r.pod(false))
}

func (f *discoveryFixture) startAgents(ctx context.Context, t *testing.T, users *certs.Authority, calculators ...*replica) {
	t.Helper()
	release, err := skew.Previous()
	if err != nil {
		t.Fatal(err)
	}
	previous, err := release.Build(binaries)
	if errors.Is(err, skew.ErrNoHistory) {
		t.Logf("the previous release's agent is not tried: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	for i, node := range f.Nodes {
		token := f.token(ctx, t, calculatorNamespace, agentAccount, tokenAudience, f.addAgentPod(ctx, t, node))
		options := testbed.AgentOptions{Binaries: binaries, Args: []string{"--token-file", writeFile(t, "token", []byte(token))}}
		switch i {
		case byMount, byMountToo:
			f.mounts[i] = f.newMount(t)
			f.mounts[i].sync(ctx, t)
			options.Mounted = f.mounts[i].dir
		case byLog:
			options.Calculators = []string{calculators[0].address}
			options.Args = append(options.Args, "--tls-ca", f.bootstrap, "--tls-server-name", serverName)
		case byStatic:
			if err != nil {
				continue
			}
			pair, err := users.IssueClient("system:node:" + node.Name)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := pair.Write(dir, "agent"); err != nil {
				t.Fatal(err)
			}
			options.Binaries = previous
			options.Calculators = addressesOf(calculators)
			options.Args = []string{"--tls-ca", f.bootstrap, "--tls-server-name", serverName,
				"--tls-cert", filepath.Join(dir, "agent.crt"), "--tls-key", filepath.Join(dir, "agent.key")}
		}
		agent, err := f.StartAgent(node, options)
		if err != nil {
			t.Fatal(err)
		}
		f.agents = append(f.agents, agent)
	}
}

// restart starts agents again, which are killed if they run.
func restart(t *testing.T, agents ...*testbed.Agent) {
	t.Helper()
	for _, agent := range agents {
		if err := errors.Join(agent.Process.Kill(), agent.Start()); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitAt waits until an agent is in sync with one of these calculators.
func (f *discoveryFixture) awaitAt(ctx context.Context, t *testing.T, agent *testbed.Agent, calculators ...*replica) {
	t.Helper()
	begin := time.Now()
	var status *agentv1.GetStatusResponse
	if err := testbed.Eventually(ctx, func() (err error) {
		if status, err = agent.GetStatus(ctx, &agentv1.GetStatusRequest{}); err != nil {
			return err
		}
		stream := status.GetCalculator()
		for _, r := range calculators {
			if stream.GetConnected() && stream.GetInSync() && stream.GetAddress() == r.address {
				return nil
			}
		}
		return fmt.Errorf("agent of %s is not in sync: %v", agent.Node.Name, stream)
	}); err != nil {
		t.Fatalf("%v; it knows %v and %v, problems %q; its log ends with\n%s", err, status.GetCalculators(), status.GetAuthorities(),
			status.GetProblems(), agent.Process.LogTail(10))
	}
	t.Logf("agent of %s was at %s after %v", agent.Node.Name, status.GetCalculator().GetAddress(), time.Since(begin).Round(100*time.Millisecond))
}

func (f *discoveryFixture) awaitAll(ctx context.Context, t *testing.T, calculators ...*replica) {
	t.Helper()
	for _, agent := range f.agents {
		f.awaitAt(ctx, t, agent, calculators...)
	}
}

// awaitKnown waits until an agent knows just these calculators from there.
func (f *discoveryFixture) awaitKnown(ctx context.Context, t *testing.T, agent *testbed.Agent, from agentv1.Origin, calculators ...*replica) {
	t.Helper()
	want := addressesOf(calculators)
	if err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		var got []string
		for _, c := range status.GetCalculators() {
			if slices.Contains(c.GetOrigins(), from) {
				got = append(got, c.GetAddress())
			}
		}
		authority := slices.ContainsFunc(status.GetAuthorities(), func(a *agentv1.TrustedAuthority) bool { return slices.Contains(a.GetOrigins(), from) })
		if !slices.Equal(got, want) || !authority {
			return fmt.Errorf("agent of %s knows %v by %v, want %v; an authority: %v", agent.Node.Name, got, from, want, authority)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// awaitProblems waits until an agent's status has a problem with each of these.
func (f *discoveryFixture) awaitProblems(ctx context.Context, t *testing.T, agent *testbed.Agent, words ...string) {
	t.Helper()
	problems := func(s *agentv1.GetStatusResponse) string { return strings.Join(s.GetProblems(), "\n") }
	if err := awaitWords(ctx, agent, problems, words...); err != nil {
		t.Fatal(err)
	}
}

// tellsByCommandLine asks millracectl on a node.
func (f *discoveryFixture) tellsByCommandLine(t *testing.T, authorities []byte) {
	t.Helper()
	agent := f.agents[byMount]
	output, err := agent.Node.Host.Run(binaries.Ctl, "status", "--agent", "unix://"+agent.Node.Socket)
	if err != nil {
		t.Fatal(err)
	}
	authority := parseOne(t, authorities)
	for _, want := range []string{"mounted,held", fingerprint(authority), authority.Subject.String()} {
		if !strings.Contains(string(output), want) {
			t.Errorf("millracectl status lacks %q:\n%s", want, output)
		}
	}
}

// testExchanged exchanges the authority while half of the agents are away, and
// beyond the time for which the old one is announced. All come back, also those
// that have nothing but the old one.
func (f *discoveryFixture) testExchanged(ctx context.Context, t *testing.T, old []byte, calculators ...*replica) {
	away := []*testbed.Agent{f.agents[byMount], f.agents[byLog]}
	for _, agent := range away {
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"metadata":{"annotations":{"millrace.io/rotate":"phased"}}}`)
	if _, err := admin.CoreV1().Secrets(calculatorNamespace).Patch(ctx, caSecret, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.awaitAnnounced(ctx, t, 2, calculators...)
	var now []byte
	if err := testbed.Eventually(ctx, func() error {
		_, now = f.announced(ctx, t)
		if strings.Count(string(now), "BEGIN CERTIFICATE") != 1 || string(now) == string(old) {
			return errors.New("the old authority is still announced")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, r := range calculators {
		if err := testbed.Eventually(ctx, func() error {
			leaf, err := r.shown(ctx, now)
			if err == nil && leaf.CheckSignatureFrom(parseOne(t, old)) == nil {
				err = fmt.Errorf("%s shows a certificate of the old authority", r.name)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	// Those that were away begin with what they held then; the others have to
	// connect anew. All calculators are new too.
	for _, r := range calculators {
		r.kill(t)
	}
	f.startReady(ctx, t, calculators...)
	restart(t, away...)
	f.awaitAll(ctx, t, calculators...)
	f.mounts[0].sync(ctx, t)
	f.mounts[1].sync(ctx, t)
}

// testForeign lets somebody else answer at an address that agents know: they
// say whose certificate it was, and whose it should have been.
func (f *discoveryFixture) testForeign(ctx context.Context, t *testing.T, calculators ...*replica) {
	foreign, err := certs.NewAuthority("somebody else's")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := foreign.Issue(pkix.Name{CommonName: serverName}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, f.Control.IPv4.AsSlice())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := pair.Write(dir, "tls"); err != nil {
		t.Fatal(err)
	}
	for _, r := range calculators {
		r.kill(t)
	}
	impostor := *calculators[0]
	impostor.args = []string{"--tls-cert", filepath.Join(dir, "tls.crt"), "--tls-key", filepath.Join(dir, "tls.key")}
	impostor.start(t)
	_, now := f.announced(ctx, t)
	for _, agent := range f.agents[:byStatic] {
		if err := awaitWords(ctx, agent, lastError, impostor.address, "somebody else's", "no authority vouches", fingerprint(parseOne(t, now))[:16]); err != nil {
			t.Error(err)
		}
	}
	impostor.kill(t)
	f.startReady(ctx, t, calculators...)
	f.awaitAll(ctx, t, calculators...)
}
