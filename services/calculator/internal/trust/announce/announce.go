// SPDX-License-Identifier: Apache-2.0

// Package announce keeps a ConfigMap up to date that tells agents where
// calculators are and whom to trust. Every calculator writes it that sees it
// differ from what it should be; the API server refuses those that have seen less than
// is there, so that no leader is needed.
package announce

import (
	"context"
	"crypto/x509"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/proto/announcement"
	"github.com/millrace-project/millrace/services/calculator/internal/trust/shared"
)

// Announcement is the ConfigMap as it was read.
type Announcement struct {
	object *corev1.ConfigMap
	// Addresses and Authorities are what agents are told; what cannot be read
	// of it counts for nothing.
	Addresses   []string
	Authorities []*x509.Certificate
}

// Read reads the ConfigMap of that name; if there is none, one without content.
func Read(ctx context.Context, client shared.Client[*corev1.ConfigMap], name string) (*Announcement, error) {
	object, err := shared.Read(ctx, client, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil {
		return nil, err
	}
	a := &Announcement{object: object}
	a.Addresses, _ = announcement.ParseAddresses(object.Data[announcement.CalculatorsKey])
	a.Authorities, _ = announcement.ParseAuthorities([]byte(object.Data[announcement.AuthoritiesKey]))
	return a, nil
}

// Announced tells whether agents are told to trust a certificate.
func (a *Announcement) Announced(certificate *x509.Certificate) bool {
	return slices.ContainsFunc(a.Authorities, certificate.Equal)
}

// Write makes the ConfigMap say this. again tells that somebody else has
// changed it since it was read, so that it has to be read anew.
func (a *Announcement) Write(ctx context.Context, client shared.Client[*corev1.ConfigMap], addresses []string, authorities []*x509.Certificate) (changed, again bool, err error) {
	data := map[string]string{
		announcement.CalculatorsKey: announcement.FormatAddresses(addresses),
		announcement.AuthoritiesKey: string(announcement.FormatAuthorities(authorities)),
	}
	next := a.object.DeepCopy()
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	maps.Copy(next.Data, data)
	if maps.Equal(a.object.Data, next.Data) {
		return false, false, nil
	}
	again, err = shared.Write(ctx, client, next)
	return !again && err == nil, again, err
}

// PortName is the name of the container port that a calculator's pod serves
// agents on.
const PortName = "grpc"

// Addresses are those of the calculators' pods that answer. If none does, they
// are of those that may soon, and if there is no pod either the present ones
// stay: an agent that has somewhere to go can do no harm there. port is for pods
// that do not name theirs. The result is sorted.
func Addresses(pods []*corev1.Pod, port uint16, present []string) []string {
	var answering, coming []string
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		addresses := addressesOf(pod, port)
		coming = append(coming, addresses...)
		if isReady(pod) {
			answering = append(answering, addresses...)
		}
	}
	list := answering
	if len(list) == 0 {
		list = coming
	}
	if len(list) == 0 {
		list = slices.Clone(present)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func addressesOf(pod *corev1.Pod, port uint16) []string {
	for _, container := range pod.Spec.Containers {
		for _, p := range container.Ports {
			if p.Name == PortName && p.ContainerPort > 0 {
				port = uint16(p.ContainerPort)
			}
		}
	}
	ips := []string{pod.Status.PodIP}
	if len(pod.Status.PodIPs) > 0 {
		ips = nil
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
	}
	var addresses []string
	for _, ip := range ips {
		// What is wrong with an address is the kubelet's matter; it is left out.
		if _, err := netip.ParseAddr(ip); err != nil {
			continue
		}
		if address, err := announcement.ParseAddress(net.JoinHostPort(ip, strconv.Itoa(int(port)))); err == nil {
			addresses = append(addresses, address)
		}
	}
	return addresses
}
