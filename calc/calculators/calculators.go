// SPDX-License-Identifier: Apache-2.0

// Package calculators makes the Calculators resource of the ConfigMap in which
// calculators announce where they are.
package calculators

import (
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/announcement"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Build reads the ConfigMap. What of it cannot be used is a problem and left
// out. Whether a certificate has expired is for those who use it to judge, as
// they have a clock.
func Build(object *model.ConfigMap) (*dataplanev1.Calculators, []problem.Problem) {
	problems := &problem.List{Object: object.Key()}
	addresses, bad := announcement.ParseAddresses(object.Calculators)
	for _, b := range bad {
		problems.Add("data["+announcement.CalculatorsKey+"]", "%s: left out", b)
	}
	authorities, bad := announcement.ParseAuthorities([]byte(object.Authorities))
	for _, b := range bad {
		problems.Add("data["+announcement.AuthoritiesKey+"]", "%s: left out", b)
	}
	content := &dataplanev1.Calculators{Addresses: addresses}
	for _, certificate := range authorities {
		content.Authorities = append(content.Authorities, certificate.Raw)
	}
	return content, problems.Sorted()
}
