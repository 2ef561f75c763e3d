// SPDX-License-Identifier: Apache-2.0

// Package errorinfo makes and reads the errors of RPCs that say, beside a code
// and a message for people, in a stable word for programs what is the matter:
// the reason of an ErrorInfo.
package errorinfo

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is ErrorInfo.domain: whose reasons they are.
type Domain string

// Errorf makes an error with a reason.
func (d Domain) Errorf(code codes.Code, reason, format string, args ...any) error {
	return detailed(code, fmt.Sprintf(format, args...), d.info(reason))
}

// RetryErrorf is Errorf that also tells when to try again, by a RetryInfo.
func (d Domain) RetryErrorf(code codes.Code, reason string, delay time.Duration, format string, args ...any) error {
	return detailed(code, fmt.Sprintf(format, args...), d.info(reason), &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
}

func (d Domain) info(reason string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: reason, Domain: string(d)}
}

func detailed(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	plain := status.New(code, message)
	st, err := plain.WithDetails(details...)
	if err != nil {
		return plain.Err()
	}
	return st.Err()
}

// Reason returns the reason of this domain that an error carries; empty if it
// carries none.
func (d Domain) Reason(err error) string {
	return reason(err, func(info *errdetails.ErrorInfo) bool { return info.GetDomain() == string(d) })
}

// Reason returns the reason that an error carries, of whatever domain; empty if
// it carries none.
func Reason(err error) string {
	return reason(err, func(*errdetails.ErrorInfo) bool { return true })
}

func reason(err error, counts func(*errdetails.ErrorInfo) bool) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && counts(info) {
			return info.GetReason()
		}
	}
	return ""
}

// RetryDelay returns after how long an error says to try again; 0 if it says
// nothing of that.
func RetryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}
