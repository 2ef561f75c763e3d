// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-project/millrace/agent/internal/held"
)

// BenchmarkRewrite compacts a log of 10,000 services with a slice of 5 backends
// each, while batches come: it tells how long that takes, and how long a batch
// waits at most with and without it.
func BenchmarkRewrite(b *testing.B) {
	store := held.New()
	l, _, err := Open(Options{Dir: b.TempDir(), Boot: boot}, store)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	all := held.NewBatch()
	for i := range 20000 {
		all.Upsert(name(i), held.Entry{Version: uint64(i), Data: make([]byte, 200)})
	}
	if err := l.Append(all); err != nil {
		b.Fatal(err)
	}
	one := func(i int) time.Duration {
		batch := held.NewBatch()
		batch.Upsert(name(i), held.Entry{Version: uint64(i), Data: fmt.Appendf(nil, "%200d", i)})
		began := time.Now()
		if err := l.Append(batch); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	var alone, beside, took time.Duration
	for i := range 1000 {
		alone = max(alone, one(i))
	}
	for b.Loop() {
		done := make(chan error)
		began := time.Now()
		go func() { done <- l.rewrite(l.path(), false) }()
		for i := 0; ; i++ {
			select {
			case err := <-done:
				if err != nil {
					b.Fatal(err)
				}
			default:
				beside = max(beside, one(i%20000))
				continue
			}
			break
		}
		took = max(took, time.Since(began))
	}
	b.ReportMetric(float64(took.Microseconds())/1000, "rewrite-ms-max")
	b.ReportMetric(float64(beside.Microseconds())/1000, "append-ms-max-beside")
	b.ReportMetric(float64(alone.Microseconds())/1000, "append-ms-max-alone")
}
