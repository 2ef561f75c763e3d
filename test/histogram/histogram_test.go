// SPDX-License-Identifier: Apache-2.0

package histogram

import (
	"encoding/json"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	for i := 1; i <= 10000; i++ {
		h.Record(time.Duration(i) * time.Microsecond)
	}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 5 * time.Millisecond}, {0.99, 9900 * time.Microsecond}} {
		if got := h.Quantile(c.q); got < c.want*98/100 || got > c.want*102/100 {
			t.Errorf("quantile %v is %v, want about %v", c.q, got, c.want)
		}
	}
	for _, d := range []time.Duration{0, 1, 63, 64, 65, 127, 128, 1 << 20, 1<<40 + 12345, 1<<62 + 1} {
		b := bucketOf(d)
		if low := lowerBound(b); low > d || d-low > d/64 {
			t.Errorf("%d falls into bucket %d from %d on", d, b, low)
		}
	}
}

// TestSum sends a histogram as JSON and adds it to another one.
func TestSum(t *testing.T) {
	var a, b, sum Histogram
	for i := range 1000 {
		a.Record(time.Duration(i) * time.Microsecond)
		b.Record(time.Duration(1000+i) * time.Microsecond)
	}
	data, err := json.Marshal(&a)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &sum); err != nil {
		t.Fatal(err)
	}
	if sum != a {
		t.Error("a histogram changes on its way through JSON")
	}
	sum.Add(&b)
	if sum.Total() != 2000 || sum.Max() != 1999*time.Microsecond {
		t.Errorf("the sum has %d records up to %v", sum.Total(), sum.Max())
	}
	if median := sum.Quantile(0.5); median < 980*time.Microsecond || median > 1000*time.Microsecond {
		t.Errorf("the sum's median is %v", median)
	}
}
