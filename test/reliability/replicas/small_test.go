// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"crypto/tls"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func metaName(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

// noVerification suits a test that asks a program which it started itself.
func noVerification() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
