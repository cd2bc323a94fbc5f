package bpf

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"
)

// Await calls load until the agent's maps that it opens are pinned, once at once
// and then with each tick, and returns what it loaded. When ctx ends before, it
// returns the zero T without an error. That it waits is logged once.
func Await[T any](ctx context.Context, log *slog.Logger, tick <-chan time.Time, load func() (T, error)) (T, error) {
	for told := false; ; told = true {
		loaded, err := load()
		if !errors.Is(err, fs.ErrNotExist) {
			return loaded, err
		}
		if !told {
			log.Info("waiting for the agent's maps", "err", err)
		}
		select {
		case <-ctx.Done():
			var none T
			return none, nil
		case <-tick:
		}
	}
}
