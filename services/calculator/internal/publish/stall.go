// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"time"

	"google.golang.org/grpc/codes"
)

// A stream whose agent does not read costs nobody else anything, and this one
// no more than the view it was brought to and one message: what else is to be
// sent is put together when there is room. It would keep an old view for ever,
// though, so in the end it is told to come anew.

// stallChecks is how often within the limit a stream is looked at.
const stallChecks = 4

// stalled returns once a message has been on its way for longer than the
// limit.
func (st *stream) stalled() <-chan error {
	result := make(chan error, 1)
	go func() {
		tick := time.NewTicker(st.service.StallLimit / stallChecks)
		defer tick.Stop()
		for {
			select {
			case <-st.context().Done():
				return
			case now := <-tick.C:
				since := st.sending.Load()
				if since != 0 && now.Sub(time.Unix(0, since)) > st.service.StallLimit {
					result <- domain.Errorf(codes.Unavailable, ReasonStalled, "the agent has read nothing for %v", st.service.StallLimit)
					return
				}
			}
		}
	}()
	return result
}
