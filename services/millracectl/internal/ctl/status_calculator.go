// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

func (a *App) writeCalculatorStatus(out *bytes.Buffer, st *calculatorv1.GetStatusResponse) error {
	source := st.GetSource()
	if st.GetSynced() {
		source += ", read in whole"
	} else {
		source += ", not read in whole yet"
	}
	lines := [][2]string{
		{"version", st.GetVersion()},
		{"up", a.since(st.GetStartTime())},
		{"source", source},
		{"revision", number(st.GetRevision())},
		{"epoch", st.GetEpoch()},
		{"position", counts(st.GetPosition().GetResourceVersions())},
		{"resources", counts(st.GetResources())},
	}
	lines = append(lines, a.trustLines(st.GetTrust())...)
	if err := section(out, "calculator "+st.GetCalculatorId(), lines); err != nil {
		return err
	}
	if err := indented(out, "authorities", a.authorities(st.GetTrust().GetAuthorities())); err != nil {
		return err
	}
	problems := &table{header: []string{"KIND", "OBJECT", "FIELD", "PROBLEM"}}
	for _, p := range st.GetProblems() {
		object := p.GetName()
		if p.GetNamespace() != "" {
			object = p.GetNamespace() + "/" + object
		}
		problems.row(p.GetKind(), object, p.GetField(), p.GetMessage())
	}
	return indented(out, "problems", problems)
}
