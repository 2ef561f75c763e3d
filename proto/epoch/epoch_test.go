// SPDX-License-Identifier: Apache-2.0

package epoch

import "testing"

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		agent, calculator string
		want              Order
	}{
		{"", "a/1", Equal},
		{"a/1", "a/1", Equal},
		{"a/1", "a/01", Equal},
		{"a/1", "a/2", Behind},
		{"a/10", "a/9", Ahead},
		{"b/1", "a/1", Foreign},
		{"a/1", "", Foreign},
		{"a", "a/1", Foreign},
		{"a/x", "a/1", Foreign},
		{"a/b/2", "a/b/1", Ahead},
	} {
		if got := Compare(c.agent, c.calculator); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.agent, c.calculator, got, c.want)
		}
	}
}

func TestFormat(t *testing.T) {
	if identity, counter, ok := Split(Format("a/b", 7)); identity != "a/b" || counter != 7 || !ok {
		t.Errorf("%q, %d, %v", identity, counter, ok)
	}
}
