package kvstore

import (
	"context"
	"time"
)

// Keep writes key to the store now and then every interval until ctx ends, and
// returns nil: heartbeats, and keys that must come back when somebody else
// takes them away. A failed write is reported to each of onError and repeated
// with backoff, at most an interval apart. value is asked before each attempt.
func Keep(ctx context.Context, store Writer, key string, interval time.Duration, value func() []byte, onError ...func(error)) error {
	backoff := Backoff{Max: min(defaultRetryMax, interval)}
	for ctx.Err() == nil {
		wait := interval
		if err := store.Apply(ctx, []Op{{Key: key, Value: value()}}); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			report(onError, err)
			wait = backoff.Next()
		} else {
			backoff.Reset()
		}
		sleep(ctx, wait) //nolint:errcheck // the loop looks at ctx itself
	}
	return nil
}

func report(sinks []func(error), err error) {
	for _, sink := range sinks {
		sink(err)
	}
}
