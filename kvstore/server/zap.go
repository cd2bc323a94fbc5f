package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger passes etcd's warnings and errors on to log. etcd ends the process
// when it cannot write (zap's Fatal) and panics on broken invariants: here both
// call died and end only the goroutine concerned, so that the owner can start a
// new life.
func zapLogger(log *slog.Logger, died func(error)) *zap.Logger {
	hook := deathHook{died: died}
	return zap.New(slogCore{log: log}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

// slogCore is a zapcore.Core that writes to slog from warnings on.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	if premature(e.Message) {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, "embedded etcd reported", "event", e.Message, "detail", detail(c.fields, fields))
	return nil
}

// premature tells the messages of etcd's storage version monitor, which looks
// for a version before the first commit has written one, and later finds it.
func premature(message string) bool {
	return message == "Failed to detect schema version" || message == "failed to update storage version"
}

func (c slogCore) Sync() error { return nil }

// detail renders fields as one value, since their names are etcd's, not ours.
func detail(groups ...[]zapcore.Field) string {
	enc := zapcore.NewMapObjectEncoder()
	for _, fields := range groups {
		for _, f := range fields {
			f.AddTo(enc)
		}
	}
	return fmt.Sprint(enc.Fields)
}

// deathHook runs after an entry from which etcd does not mean to go on.
type deathHook struct{ died func(error) }

func (h deathHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(e.Message)
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = fmt.Errorf("%s: %w", e.Message, cause)
		}
	}
	h.died(err)
	runtime.Goexit()
}
