// SPDX-License-Identifier: Apache-2.0

package errorinfo_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/errorinfo"
)

func TestErrors(t *testing.T) {
	t.Parallel()
	const own, other errorinfo.Domain = "millrace.own", "millrace.other"
	for name, c := range map[string]struct {
		err           error
		code          codes.Code
		message       string
		reason, ofOwn string
		delay         time.Duration
	}{
		"a reason":          {own.Errorf(codes.NotFound, "NONE", "no %s", "x"), codes.NotFound, "no x", "NONE", "NONE", 0},
		"a delay":           {own.RetryErrorf(codes.Unavailable, "BUSY", time.Second, "%d wait", 3), codes.Unavailable, "3 wait", "BUSY", "BUSY", time.Second},
		"another's":         {other.Errorf(codes.NotFound, "NONE", "no"), codes.NotFound, "no", "NONE", "", 0},
		"wrapped":           {fmt.Errorf("asked: %w", own.RetryErrorf(codes.Aborted, "GONE", time.Minute, "gone")), codes.Aborted, "asked: rpc error: code = Aborted desc = gone", "GONE", "GONE", time.Minute},
		"a status, no more": {status.Error(codes.Internal, "bad"), codes.Internal, "bad", "", "", 0},
		"an error, no more": {errors.New("bad"), codes.Unknown, "bad", "", "", 0},
		"none":              {nil, codes.OK, "", "", "", 0},
	} {
		if st := status.Convert(c.err); st.Code() != c.code || st.Message() != c.message {
			t.Errorf("%s: %v, want %v with %q", name, c.err, c.code, c.message)
		}
		if reason, ofOwn, delay := errorinfo.Reason(c.err), own.Reason(c.err), errorinfo.RetryDelay(c.err); reason != c.reason || ofOwn != c.ofOwn || delay != c.delay {
			t.Errorf("%s: reason %q, %q of the domain, delay %v; want %q, %q, %v", name, reason, ofOwn, delay, c.reason, c.ofOwn, c.delay)
		}
	}
}
