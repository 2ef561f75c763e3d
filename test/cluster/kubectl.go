// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/test/kube/controlplane"
)

// Kubectl runs kubectl with every right and returns what it printed. The error
// of a failure holds what it complained of.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	program, err := controlplane.Binary("kubectl")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, append([]string{
		"--kubeconfig=" + c.Kubeconfig(), "--cache-dir=" + c.path("kubectl-cache"),
	}, args...)...)
	cmd.Stdin = stdin
	return output(cmd)
}

// OutsideCommand returns a command that runs where clients outside of the
// cluster are: on the nodes' network, but on none of the nodes.
func (c *Cluster) OutsideCommand(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + c.netns(controlPlanePart), "--"}, args...)...)
}

// ExecOutside runs a command there and returns what it printed. The error of a
// failure holds what it complained of.
func (c *Cluster) ExecOutside(ctx context.Context, args ...string) (string, error) {
	return output(c.OutsideCommand(ctx, args...))
}

// WaitReady returns when every node is ready, every Deployment and DaemonSet
// has what it wants, and every pod runs.
func (c *Cluster) WaitReady(ctx context.Context) error {
	client, err := c.Clientset()
	if err != nil {
		return err
	}
	all := metav1.ListOptions{}
	err = wait(ctx, "the cluster", func() error {
		nodes, err := client.CoreV1().Nodes().List(ctx, all)
		if err != nil {
			return err
		}
		var missing []error
		for i := range nodes.Items {
			missing = append(missing, ready(&nodes.Items[i]))
		}
		deployments, err := client.AppsV1().Deployments("").List(ctx, all)
		if err != nil {
			return err
		}
		for i := range deployments.Items {
			missing = append(missing, deployed(&deployments.Items[i]))
		}
		sets, err := client.AppsV1().DaemonSets("").List(ctx, all)
		if err != nil {
			return err
		}
		for i := range sets.Items {
			missing = append(missing, everywhere(&sets.Items[i]))
		}
		pods, err := client.CoreV1().Pods("").List(ctx, all)
		if err != nil {
			return err
		}
		for i := range pods.Items {
			missing = append(missing, running(&pods.Items[i]))
		}
		return errors.Join(missing...)
	})
	if err == nil {
		return nil
	}
	// What the nodes complained of says more than what is missing.
	events, _ := c.Kubectl(context.WithoutCancel(ctx), nil, "get", "events", "-A", "--field-selector=type=Warning",
		"-o=custom-columns=OF:.involvedObject.name,REASON:.reason,MESSAGE:.message", "--no-headers")
	return fmt.Errorf("%w\nwarnings:\n%s", err, strings.TrimSpace(events))
}

func deployed(d *appsv1.Deployment) error {
	want := *d.Spec.Replicas
	if d.Status.ObservedGeneration < d.Generation || d.Status.UpdatedReplicas != want || d.Status.AvailableReplicas != want || d.Status.Replicas != want {
		return fmt.Errorf("deployment %s/%s has %d of %d replicas available", d.Namespace, d.Name, d.Status.AvailableReplicas, want)
	}
	return nil
}

func everywhere(d *appsv1.DaemonSet) error {
	want := d.Status.DesiredNumberScheduled
	if d.Status.ObservedGeneration < d.Generation || want == 0 || d.Status.UpdatedNumberScheduled != want || d.Status.NumberAvailable != want {
		return fmt.Errorf("daemon set %s/%s has %d of %d pods available", d.Namespace, d.Name, d.Status.NumberAvailable, want)
	}
	return nil
}

func running(p *corev1.Pod) error {
	if p.Status.Phase == corev1.PodSucceeded || p.DeletionTimestamp != nil {
		return nil
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	reason := string(p.Status.Phase)
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if w := s.State.Waiting; w != nil {
			reason += ", " + s.Name + ": " + strings.TrimSpace(w.Reason+" "+w.Message)
		}
	}
	return fmt.Errorf("pod %s/%s is not ready (%s)", p.Namespace, p.Name, reason)
}
