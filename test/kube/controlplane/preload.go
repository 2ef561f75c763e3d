// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"
)

// putsPerTransaction is etcd's default limit.
const putsPerTransaction = 128

// Preload writes Services and EndpointSlices straight into etcd, in the form
// that the API server stores them in. The API server's allocator of cluster IPs
// takes time by the square of their number, minutes for ten thousand. Services
// must have their cluster IPs, and must not have node ports, whose allocations
// Preload does not record.
func (c *ControlPlane) Preload(ctx context.Context, objects ...runtime.Object) error {
	var puts []etcdPut
	for _, object := range objects {
		more, err := stored(object)
		if err != nil {
			return err
		}
		puts = append(puts, more...)
	}
	for batch := range slices.Chunk(puts, putsPerTransaction) {
		if err := c.putAll(ctx, batch); err != nil {
			return fmt.Errorf("writing to etcd: %w", err)
		}
	}
	return nil
}

// etcdPut is a request of etcd's JSON interface; bytes travel in base64.
type etcdPut struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
}

// stored returns what etcd holds of an object.
func stored(object runtime.Object) ([]etcdPut, error) {
	switch o := object.(type) {
	case *discoveryv1.EndpointSlice:
		put, err := encode("endpointslices/"+o.Namespace+"/"+o.Name, o.DeepCopy())
		return []etcdPut{put}, err
	case *corev1.Service:
		put, err := encode("services/specs/"+o.Namespace+"/"+o.Name, o.DeepCopy())
		if err != nil {
			return nil, err
		}
		puts := []etcdPut{put}
		for _, ip := range o.Spec.ClusterIPs {
			put, err := encode("ipaddresses/"+ip, allocation(o, ip))
			if err != nil {
				return nil, err
			}
			puts = append(puts, put)
		}
		return puts, nil
	}
	return nil, fmt.Errorf("preloading a %T is not supported", object)
}

// allocation is the API server's record of a cluster IP in use.
func allocation(service *corev1.Service, ip string) *networkingv1.IPAddress {
	family := corev1.IPv4Protocol
	if addr, err := netip.ParseAddr(ip); err == nil && addr.Is6() {
		family = corev1.IPv6Protocol
	}
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: ip, Labels: map[string]string{
			networkingv1.LabelIPAddressFamily: string(family),
			networkingv1.LabelManagedBy:       "ipallocator.k8s.io",
		}},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Resource: "services", Namespace: service.Namespace, Name: service.Name,
		}},
	}
}

// encode returns the object as it is stored under a key; it changes the object.
func encode(key string, object interface {
	runtime.Object
	metav1.Object
}) (etcdPut, error) {
	object.SetUID(types.UID(uuid.NewUUID()))
	object.SetCreationTimestamp(metav1.Now())
	kinds, _, err := scheme.Scheme.ObjectKinds(object)
	if err != nil {
		return etcdPut{}, fmt.Errorf("encoding %s: %w", key, err)
	}
	object.GetObjectKind().SetGroupVersionKind(kinds[0])
	var value bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &value); err != nil {
		return etcdPut{}, fmt.Errorf("encoding %s: %w", key, err)
	}
	return etcdPut{Key: []byte("/registry/" + key), Value: value.Bytes()}, nil
}

func (c *ControlPlane) putAll(ctx context.Context, puts []etcdPut) error {
	type operation struct {
		Put etcdPut `json:"request_put"`
	}
	var transaction struct {
		Success []operation `json:"success"`
	}
	for _, put := range puts {
		transaction.Success = append(transaction.Success, operation{put})
	}
	body, err := json.Marshal(transaction)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost,
		fmt.Sprintf("http://127.0.0.1:%d/v3/kv/txn", c.etcdPort), bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dialNetNS(c.opts.NetNS), DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !bytes.Contains(answer, []byte(`"succeeded":true`)) {
		return fmt.Errorf("%s: %s", response.Status, answer)
	}
	return nil
}
