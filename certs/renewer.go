package certs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// RenewerConfig describes a Renewer.
type RenewerConfig struct {
	// Dir is the CA directory, which must hold ca.key.
	Dir string
	// Names are the certificates to keep, without .crt, such as server-east; all
	// of the directory when empty.
	Names []string
	// Interval is the longest time between two looks at the directory, one hour
	// when zero: a rotation of the CA, or a restored backup, is noticed then.
	Interval time.Duration
	// Log receives renewals and failures. Nothing is logged when nil.
	Log *slog.Logger
	// Looked is told after each look when the certificate that ends first does
	// so, and what went wrong (nil if nothing). May be nil; must not block.
	Looked func(firstEnd time.Time, err error)
	// Renewed is told of each certificate that was issued anew. May be nil; must
	// not block.
	Renewed func(Renewal)
}

const (
	defaultInterval = time.Hour
	firstRetry      = time.Minute
)

// Validate returns all problems of c in one error.
func (c RenewerConfig) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("the CA directory is not set"))
	}
	if c.Interval < 0 {
		errs = append(errs, fmt.Errorf("interval %s is negative", c.Interval))
	}
	return errors.Join(errs...)
}

// Renewer keeps the certificates of a CA directory fresh, at half of their life
// and at once after a rotation of the CA was noticed. Several may run for one
// directory: they take turns, and what one has renewed is no longer due.
type Renewer struct{ cfg RenewerConfig }

// NewRenewer returns a Renewer that does nothing before Run.
func NewRenewer(cfg RenewerConfig) (*Renewer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("set up renewal of certificates: %w", err)
	}
	if cfg.Interval == 0 {
		cfg.Interval = defaultInterval
	}
	cfg.Log = orDiscard(cfg.Log)
	return &Renewer{cfg: cfg}, nil
}

// Run renews until ctx ends, which is no error; nothing else ends it. A failure
// is reported and tried again, first after a minute, then less and less often,
// at least every Interval.
func (r *Renewer) Run(ctx context.Context) error {
	retry := firstRetry
	for {
		next, err := r.Look()
		if err == nil {
			retry = firstRetry
		} else {
			next, retry = min(next, retry), 2*retry
		}
		timer := time.NewTimer(min(max(next, time.Second), r.cfg.Interval))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Look renews once what is due and returns how long it is until the next
// certificate will be. A process calls it before it loads its certificates, so
// that one that ended while it was down does not keep it from starting.
func (r *Renewer) Look() (time.Duration, error) {
	list, err := Renew(r.cfg.Dir, RenewOptions{Names: r.cfg.Names})
	next, end := r.cfg.Interval, time.Time{}
	for _, done := range list {
		r.tell(done)
		next = min(next, time.Until(done.Due))
		if end.IsZero() || done.NotAfter.Before(end) {
			end = done.NotAfter
		}
	}
	if err != nil {
		r.cfg.Log.Warn("could not renew certificates", "err", err)
	}
	if r.cfg.Looked != nil {
		r.cfg.Looked(end, err)
	}
	return next, err
}

func (r *Renewer) tell(done Renewal) {
	if !done.Renewed {
		return
	}
	r.cfg.Log.Info("renewed certificate", "file", done.Cert, "reason", done.Reason, "until", done.NotAfter)
	if r.cfg.Renewed != nil {
		r.cfg.Renewed(done)
	}
}
