// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// testClock moves one second at each look.
func testClock() func() time.Time {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return func() time.Time {
		now = now.Add(time.Second)
		return now
	}
}

func TestStages(t *testing.T) {
	const pass = `{"Action":"pass","Package":"github.com/millrace-project/millrace/calc","Test":"TestA"}
{"Action":"pass","Package":"github.com/millrace-project/millrace/calc","Elapsed":1.5}
`
	for _, c := range []struct {
		name, events            string
		passed, failed, skipped int
		printed, tabled         string
	}{
		{name: "pass", events: pass, passed: 1, printed: "ok    calc: 1 tests"},
		{
			name: "figure", events: `{"Action":"output","Package":"p","Test":"TestN","Output":"    a_test.go:5: figure: SEED=42\n"}
{"Action":"output","Package":"p","Test":"TestN","Output":"    a_test.go:6: chatter\n"}
{"Action":"output","Package":"p","Test":"TestN","Output":"    a_test.go:7: figure: 12 "}
{"Action":"output","Package":"p","Test":"TestN","Output":"requests\n"}
` + pass + `{"Action":"pass","Package":"p","Test":"TestN"}
`, passed: 2, printed: "figure  p TestN: SEED=42\n", tabled: "figure   p TestN: SEED=42\nfigure   p TestN: 12 requests\n\n2 passed",
		},
		{
			name: "skip", events: pass + `{"Action":"output","Package":"p","Test":"TestS","Output":"=== RUN   TestS\n"}
{"Action":"output","Package":"p","Test":"TestS","Output":"    a_test.go:12: needs a newer kernel\n"}
{"Action":"output","Package":"p","Test":"TestS","Output":"--- SKIP: TestS (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestS"}
`, passed: 1, skipped: 1, tabled: "skipped  p TestS: needs a newer kernel\n",
		},
		{
			name: "fail", events: pass + `{"Action":"output","Package":"p","Test":"TestF","Output":"    a_test.go:3: saw 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestF"}
{"Action":"fail","Package":"p"}
`, passed: 1, failed: 1, printed: "saw 1, want 2", tabled: "FAILED   p TestF (fail)\n",
		},
		{
			name: "build", events: pass + `{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:1: syntax error\n"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}
`, passed: 1, failed: 1, printed: "p.go:1: syntax error", tabled: "FAILED   p (build)\n",
		},
		{
			name: "panic", events: `{"Action":"output","Package":"p","Test":"TestP","Output":"panic: it broke\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\n"}
{"Action":"fail","Package":"p"}
`, failed: 1, printed: "panic: it broke",
		},
		{name: "nothing", events: `{"Action":"skip","Package":"p"}`, failed: 1, printed: "no test was run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			var out bytes.Buffer
			err := runStage(c.name, strings.NewReader(c.events), &out, testClock())
			if failed := errors.Is(err, errFailed); failed != (c.failed > 0) || err != nil && !failed {
				t.Errorf("stage: error %v with %d failures", err, c.failed)
			}
			stages, err := readStages(directory)
			if err != nil || len(stages) != 1 {
				t.Fatalf("kept stages %v: %v", stages, err)
			}
			if s := stages[0]; s.Passed != c.passed || s.Failed != c.failed || s.Skipped != c.skipped || s.Seconds != 1 {
				t.Errorf("kept %+v", s)
			}
			if !strings.Contains(out.String(), c.printed) {
				t.Errorf("printed %q, which lacks %q", out.String(), c.printed)
			}
			var table bytes.Buffer
			if err := printTable(directory, &table); errors.Is(err, errFailed) != (c.failed > 0) {
				t.Errorf("table: error %v with %d failures", err, c.failed)
			}
			if !strings.Contains(table.String(), c.tabled) {
				t.Errorf("table %q lacks %q", table.String(), c.tabled)
			}
		})
	}
}

func TestChecksAndTable(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := printTable(directory, os.Stdout); err == nil {
		t.Error("a table of nothing is no error")
	}
	if err := runCheck("good", []string{"true"}, 1); err != nil {
		t.Errorf("true: %v", err)
	}
	if err := runCheck("bad", []string{"false"}, 1); !errors.Is(err, errFailed) {
		t.Errorf("false: %v", err)
	}
	var table bytes.Buffer
	if err := printTable(directory, &table); !errors.Is(err, errFailed) {
		t.Errorf("table: %v", err)
	}
	text := table.String()
	if !strings.HasSuffix(text, "\n1 passed, 1 failed, 0 skipped\n") || strings.Index(text, "good") > strings.Index(text, "bad") {
		t.Errorf("table:\n%s", text)
	}
}
