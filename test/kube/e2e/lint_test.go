// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/millrace-project/millrace/test/harness"
)

// What pods may have beyond an ordinary pod's rights. Whatever is added here is
// to be needed, and shown to be by a test.
var (
	// mayMount may mount file systems and is privileged for it, in an init
	// container that ends before anything else begins.
	mayMount = "bpf-filesystem"
	// agentCapabilities are all that agents' containers have.
	agentCapabilities = []corev1.Capability{"BPF", "NET_ADMIN", "PERFMON"}
	// hostPaths are the directories of nodes that pods may see.
	hostPaths = []string{"/sys/fs/bpf", "/sys/fs/cgroup", "/var/lib/millrace", "/run/millrace", "/proc/sys/net", "/opt/cni/bin", "/etc/cni/net.d"}
	// foreignSecrets are made by somebody else.
	foreignSecrets = []string{"millrace-calculator-tls"} // cert-manager
)

// TestManifestLint holds every rendered workload to what is promised of it.
func TestManifestLint(t *testing.T) {
	ctx := harness.Limit(t, 120*time.Second)
	for _, name := range kustomizations(t) {
		t.Run(name, func(t *testing.T) {
			_, objects := render(ctx, t, name)
			list := workloads(t, objects)
			if len(list) == 0 {
				t.Fatal("no workload")
			}
			if name == "base" && strings.Contains(strings.Join(objects, ""), "secretName:") {
				t.Error("the ordinary installation needs a Secret")
			}
			for _, w := range list {
				for _, fault := range append(podFaults(w), secretFaults(w)...) {
					t.Errorf("%s %s: %s", w.Kind, w.Name, fault)
				}
			}
			lintBudgets(t, list, objects)
			lintRights(t, objects)
		})
	}
}

// podFaults tells what is wrong with a workload's pods.
func podFaults(w workload) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	spec := w.Spec.Template.Spec
	if spec.ServiceAccountName == "" || spec.ServiceAccountName == "default" {
		fault("runs as the service account %q", spec.ServiceAccountName)
	}
	if spec.PriorityClassName == "" {
		fault("has no priority")
	}
	if spec.HostPID || spec.HostIPC {
		fault("sees the node's processes")
	}
	if spec.TerminationGracePeriodSeconds == nil {
		fault("does not say how long it may take to end")
	}
	switch w.Kind {
	case "DaemonSet":
		if w.Spec.UpdateStrategy.RollingUpdate == nil {
			fault("does not say how it is updated")
		}
		if !slices.ContainsFunc(spec.Tolerations, func(t corev1.Toleration) bool {
			return t.Key == "" && t.Effect == "" && t.Operator == corev1.TolerationOpExists
		}) {
			fault("is kept from nodes by taints")
		}
	case "Deployment":
		if w.Spec.Strategy.RollingUpdate == nil {
			fault("does not say how it is updated")
		}
		if len(spec.TopologySpreadConstraints) == 0 {
			fault("is not spread")
		}
	}
	for _, volume := range spec.Volumes {
		if path := volume.HostPath; path != nil && !slices.Contains(hostPaths, path.Path) {
			fault("volume %s: host path %s", volume.Name, path.Path)
		}
	}
	for _, c := range spec.InitContainers {
		faults = append(faults, containerFaults(w, c, true)...)
	}
	for _, c := range spec.Containers {
		faults = append(faults, containerFaults(w, c, false)...)
	}
	return faults
}

// containerFaults tells what is wrong with a container.
func containerFaults(w workload, c corev1.Container, begins bool) (faults []string) {
	fault := func(format string, args ...any) {
		faults = append(faults, "container "+c.Name+": "+fmt.Sprintf(format, args...))
	}
	if image, tag, ok := strings.Cut(c.Image, ":"); !ok || tag == "" || tag == "latest" {
		fault("image %s has the tag %q", image, tag)
	}
	for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if _, ok := c.Resources.Requests[resource]; !ok {
			fault("requests no %s", resource)
		}
	}
	sc := c.SecurityContext
	if sc == nil {
		fault("has no security context")
		return faults
	}
	if sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
		fault("its root is writable")
	}
	if sc.Privileged != nil && *sc.Privileged {
		if !begins || c.Name != mayMount {
			fault("is privileged")
		}
		return append(faults, mountFaults(c, true)...)
	}
	faults = append(faults, mountFaults(c, false)...)
	if sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation {
		fault("may gain privileges")
	}
	switch {
	case sc.Capabilities == nil || !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}):
		fault("keeps capabilities")
	case w.Kind == "DaemonSet":
		if !slices.Equal(sc.Capabilities.Add, agentCapabilities) {
			fault("has the capabilities %v, want %v", sc.Capabilities.Add, agentCapabilities)
		}
	default:
		pod := w.Spec.Template.Spec.SecurityContext
		if len(sc.Capabilities.Add) > 0 || pod == nil || pod.RunAsNonRoot == nil || !*pod.RunAsNonRoot || pod.RunAsUser == nil || *pod.RunAsUser == 0 ||
			pod.SeccompProfile == nil || pod.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			fault("runs as root, or with capabilities %v, or without a seccomp profile", sc.Capabilities.Add)
		}
	}
	if begins || strings.HasPrefix(w.Name, "millrace-cleanup") {
		return faults // ends by itself, or only waits
	}
	for what, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		path := map[string]string{"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}[what]
		if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path {
			fault("%s probe is not %s", what, path)
		}
	}
	return faults
}

// mountFaults finds mounts that reach back to the node.
func mountFaults(c corev1.Container, mayMount bool) (faults []string) {
	for _, mount := range c.VolumeMounts {
		if mount.MountPropagation != nil && *mount.MountPropagation == corev1.MountPropagationBidirectional && !mayMount {
			faults = append(faults, fmt.Sprintf("container %s: mounts at %s reach the node", c.Name, mount.MountPath))
		}
	}
	return faults
}

// secretFaults finds Secrets that a workload cannot start without.
func secretFaults(w workload) (faults []string) {
	for _, volume := range w.Spec.Template.Spec.Volumes {
		if s := volume.Secret; s != nil && (s.Optional == nil || !*s.Optional) && !slices.Contains(foreignSecrets, s.SecretName) {
			faults = append(faults, fmt.Sprintf("needs the Secret %s, which nothing here makes", s.SecretName))
		}
	}
	return faults
}

// lintBudgets demands that every Deployment has a budget that lets nodes be
// drained and never all replicas go.
func lintBudgets(t *testing.T, list []workload, objects []string) {
	budgets := map[string]policyv1.PodDisruptionBudget{}
	for _, object := range objects {
		var b policyv1.PodDisruptionBudget
		if err := yaml.Unmarshal([]byte(object), &b); err == nil && b.Kind == "PodDisruptionBudget" {
			budgets[b.Spec.Selector.MatchLabels["app.kubernetes.io/name"]] = b
		}
	}
	for _, w := range list {
		if w.Kind != "Deployment" {
			continue
		}
		b, ok := budgets[w.Spec.Template.Labels["app.kubernetes.io/name"]]
		if !ok || b.Spec.MaxUnavailable == nil || b.Spec.MaxUnavailable.IntValue() != 1 {
			t.Errorf("Deployment %s: its disruption budget is %+v", w.Name, b.Spec)
		}
	}
}

// lintRights looks for rights that are too wide.
func lintRights(t *testing.T, objects []string) {
	for _, object := range objects {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(object), &meta); err != nil {
			t.Fatal(err)
		}
		if meta.Kind != "ClusterRole" && meta.Kind != "Role" {
			continue
		}
		var role rbacv1.ClusterRole // a Role has its rules in the same place
		if err := yaml.Unmarshal([]byte(object), &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			if wide := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs); slices.Contains(wide, "*") {
				t.Errorf("%s %s: %v", meta.Kind, role.Name, rule)
			}
			if meta.Kind == "ClusterRole" && slices.Contains(rule.Resources, "secrets") {
				t.Errorf("%s reads Secrets of all namespaces: %v", role.Name, rule)
			}
		}
	}
}

// TestManifestLintFinds breaks a sound workload in every way that the lint
// knows.
func TestManifestLintFinds(t *testing.T) {
	ctx := harness.Limit(t, 60*time.Second)
	_, objects := render(ctx, t, "base")
	sound := func(kind string) workload {
		for _, w := range workloads(t, objects) {
			if w.Kind == kind {
				return w
			}
		}
		t.Fatalf("no %s", kind)
		return workload{}
	}
	yes, no, root := true, false, int64(0)
	breaks := map[string]struct {
		kind string
		how  func(*corev1.PodSpec)
	}{
		"is privileged": {"DaemonSet", func(p *corev1.PodSpec) { p.Containers[0].SecurityContext.Privileged = &yes }},
		"CAP_SYS_ADMIN": {"DaemonSet", func(p *corev1.PodSpec) {
			p.Containers[0].SecurityContext.Capabilities.Add = []corev1.Capability{"CAP_SYS_ADMIN"}
		}},
		"keeps capabilities":  {"Deployment", func(p *corev1.PodSpec) { p.Containers[0].SecurityContext.Capabilities.Drop = nil }},
		"runs as root":        {"Deployment", func(p *corev1.PodSpec) { p.SecurityContext.RunAsUser = &root }},
		"root is writable":    {"Deployment", func(p *corev1.PodSpec) { p.Containers[0].SecurityContext.ReadOnlyRootFilesystem = &no }},
		"may gain privileges": {"Deployment", func(p *corev1.PodSpec) { p.Containers[0].SecurityContext.AllowPrivilegeEscalation = nil }},
		`the tag "latest"`:    {"Deployment", func(p *corev1.PodSpec) { p.Containers[0].Image = "x:latest" }},
		`the tag ""`:          {"DaemonSet", func(p *corev1.PodSpec) { p.InitContainers[0].Image = "x" }},
		"requests no cpu":     {"DaemonSet", func(p *corev1.PodSpec) { p.Containers[0].Resources.Requests = nil }},
		"liveness probe":      {"DaemonSet", func(p *corev1.PodSpec) { p.Containers[0].LivenessProbe.HTTPGet.Path = "/readyz" }},
		"readiness probe":     {"Deployment", func(p *corev1.PodSpec) { p.Containers[0].ReadinessProbe = nil }},
		"host path /etc": {"DaemonSet", func(p *corev1.PodSpec) {
			p.Volumes = append(p.Volumes, corev1.Volume{VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}})
		}},
		"reach the node": {"DaemonSet", func(p *corev1.PodSpec) {
			p.Containers[0].VolumeMounts[0].MountPropagation = p.InitContainers[0].VolumeMounts[0].MountPropagation
		}},
		"kept from nodes": {"DaemonSet", func(p *corev1.PodSpec) { p.Tolerations = nil }},
		"needs the Secret x": {"Deployment", func(p *corev1.PodSpec) {
			p.Volumes = append(p.Volumes, corev1.Volume{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "x"}}})
		}},
		"is not spread":    {"Deployment", func(p *corev1.PodSpec) { p.TopologySpreadConstraints = nil }},
		"node's processes": {"DaemonSet", func(p *corev1.PodSpec) { p.HostPID = true }},
		"no priority":      {"Deployment", func(p *corev1.PodSpec) { p.PriorityClassName = "" }},
	}
	for want, b := range breaks {
		w := sound(b.kind)
		b.how(&w.Spec.Template.Spec)
		if faults := append(podFaults(w), secretFaults(w)...); !strings.Contains(strings.Join(faults, "\n"), want) {
			t.Errorf("%s: found %q", want, faults)
		}
	}
}

// TestMonitoringMetrics looks up every metric that rules and dashboard ask for
// in the operators' documentation, and every alert's words.
func TestMonitoringMetrics(t *testing.T) {
	dir := filepath.Join(deployDir, "components", "monitoring")
	documented, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\bmillrace_[a-z_]+`)
	known := names.FindAllString(string(documented), -1)
	for _, file := range []string{"rules.yaml", "dashboard.json"} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		asked := names.FindAllString(string(data), -1)
		if len(asked) < 10 {
			t.Errorf("%s asks for %v only", file, asked)
		}
		for _, name := range asked {
			if !slices.Contains(known, strings.TrimSuffix(name, "_bucket")) {
				t.Errorf("%s: %s is not in docs/operations.md", file, name)
			}
		}
		if file == "dashboard.json" && !json.Valid(data) {
			t.Errorf("%s is no JSON", file)
		}
	}
}

// readYAML reads a file of one object.
func readYAML(path string, object any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(data, object); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// stderrOf is what a program said that failed.
func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(exit.Stderr)
	}
	return ""
}
