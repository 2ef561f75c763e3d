// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/millrace-project/millrace/proto/access"
)

const (
	// longestToken bounds what is looked at. Tokens of service accounts have 1 to
	// 2 KB.
	longestToken = 16 << 10
	// skew is how far the API server's clock may be behind this one.
	skew = time.Minute
)

// claims are those of a token that can refuse it before anybody is asked, and
// that bound how long a review counts. They are not verified: nothing is
// granted by them.
type claims struct {
	Audience audience `json:"aud"`
	Expiry   float64  `json:"exp"`
}

// audience is one or several names.
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

func parseClaims(token string) (claims, error) {
	var c claims
	if len(token) > longestToken {
		return c, fmt.Errorf("it has %d bytes, at most %d are allowed", len(token), longestToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("it is no JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return c, fmt.Errorf("its claims are not in base64: %w", err)
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return c, fmt.Errorf("its claims are not readable: %w", err)
	}
	return c, nil
}

// expires is when the token's time is over; zero if it says nothing.
func (c claims) expires() time.Time {
	if c.Expiry <= 0 || c.Expiry > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(c.Expiry), 0)
}

// screen refuses a token that cannot pass a review, so that it costs none.
func screen(token, wanted string, now time.Time) (claims, error) {
	c, err := parseClaims(token)
	if err != nil {
		return c, access.Deny(codes.Unauthenticated, access.ReasonTokenMalformed, "the token is not understood: %v", err)
	}
	if !slices.Contains(c.Audience, wanted) {
		return c, access.Deny(codes.Unauthenticated, access.ReasonForeignAudience,
			"the token is for %q, not for %q", []string(c.Audience), wanted)
	}
	switch expires := c.expires(); {
	case expires.IsZero():
		return c, access.Deny(codes.Unauthenticated, access.ReasonTokenMalformed, "the token does not say when it expires")
	case expires.Add(skew).Before(now):
		return c, access.Deny(codes.Unauthenticated, access.ReasonTokenExpired,
			"the token has expired at %s", expires.UTC().Format(time.RFC3339))
	}
	return c, nil
}
