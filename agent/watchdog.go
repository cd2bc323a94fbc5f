package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/bpf"
)

// repairer is a kernel whose pins and attachments others can spoil.
type repairer interface {
	// Repair puts right what it can and returns what it found.
	Repair() []bpf.Repair
}

// watchPause is how long something spoilt may stay unseen; the file system of
// the pins notifies nobody.
const watchPause = 5 * time.Second

// watchdog has the kernel repair itself, and tells.
type watchdog struct {
	kernel  repairer
	log     *slog.Logger
	repairs *prometheus.CounterVec
	faults  prometheus.Gauge
	known   map[string]string // errors that were logged, by kind and name
	// tell receives what is wrong now, "" for nothing.
	tell func(string)
}

func newWatchdog(k repairer, c *core, tell func(string)) *watchdog {
	return &watchdog{kernel: k, log: c.log, repairs: c.metrics.repairs, faults: c.metrics.faults, known: map[string]string{}, tell: tell}
}

// watch repairs the kernel's objects until ctx ends. It returns an error when
// only a new start of the agent can repair them.
func (a *Agent) watch(ctx context.Context) error {
	k, ok := a.core.kernel.(repairer)
	if !ok {
		return nil
	}
	tick := time.NewTicker(a.pause)
	defer tick.Stop()
	w := newWatchdog(k, a.core, func(fault string) { _ = a.core.do(ctx, func(c *core) { c.setFault(fault) }) })
	return w.run(ctx, tick.C)
}

func (c *core) setFault(fault string) {
	if c.fault == fault {
		return
	}
	c.fault = fault
	c.wakeWaiters()
	c.wantReport()
}

func (w *watchdog) run(ctx context.Context, tick <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
			if err := w.look(); err != nil {
				return err
			}
		}
	}
}

// look is one round. What stays broken is logged once.
func (w *watchdog) look() error {
	var broken []string
	var fatal error
	still := map[string]string{}
	for _, r := range w.kernel.Repair() {
		if r.Err == nil {
			w.repairs.WithLabelValues(r.Kind).Inc()
			w.log.Warn("repaired what somebody changed; end load balancing by the agent's cleanup", "op", r.Kind, "key", r.Name, "err", r.Found)
			continue
		}
		err := fmt.Errorf("repair %s %s (%s): %w", r.Kind, r.Name, r.Found, r.Err)
		broken = append(broken, err.Error())
		still[r.Kind+" "+r.Name] = err.Error()
		if w.known[r.Kind+" "+r.Name] != err.Error() {
			w.log.Error("cannot repair what somebody changed; tries go on", "op", r.Kind, "key", r.Name, "err", err)
		}
		if errors.Is(r.Err, bpf.ErrRights) {
			fatal = errors.Join(fatal, err)
		}
	}
	w.known = still
	w.faults.Set(float64(len(broken)))
	w.tell(strings.Join(broken, "; "))
	return fatal
}
