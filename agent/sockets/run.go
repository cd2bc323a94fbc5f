package sockets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Config says where the maps and the network namespaces are.
type Config struct {
	// PinDir is the agent's pin directory.
	PinDir string
	// NetnsDirs are directories in which network namespaces are mounted, beside
	// those of the processes that can be seen. One that does not exist is empty.
	NetnsDirs []string
	// Log receives what is ended and what cannot be.
	Log *slog.Logger
}

// Validate reports every problem of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.PinDir == "" {
		errs = append(errs, errors.New("--bpffs: not set; give the agent's"))
	}
	for _, dir := range c.NetnsDirs {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("--netns-dir %q: not an absolute path; give the directory in which the container runtime mounts network namespaces, such as /run/netns", dir))
		}
	}
	return errors.Join(errs...)
}

const (
	// pause is between two glances at the maps, which cost next to nothing.
	pause = 250 * time.Millisecond
	// atLeast is how often the sockets are looked at though nothing seems to have
	// changed.
	atLeast = 30 * time.Second
	// atOnce bounds the connections that are ended in one go.
	atOnce = 16384
	// again is when a socket that was found nowhere is looked for once more.
	again = time.Minute
)

// Run waits for the agent's maps and ends connections to withdrawn backends until
// ctx ends. It returns an error when the agent's maps are replaced by others: the
// programs have to be loaded anew.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	s, err := bpf.Await(ctx, c.Log, tick.C, func() (*bpf.Sockets, error) {
		return bpf.LoadSockets(bpf.SocketsOptions{PinDir: c.PinDir, Log: c.Log})
	})
	if err != nil || s == nil {
		return err
	}
	remembered, err := s.Remembered()
	if err != nil {
		return errors.Join(err, s.Close())
	}
	k := keeper{kernel: s, log: c.Log, memory: remembered, missing: map[uint64]time.Duration{}}
	k.namespaces = func() []bpf.Namespace { return namespaces("/proc", c.NetnsDirs) }
	c.Log.Info("ending connections to withdrawn backends", "n", len(remembered))
	for {
		if err := k.glance(bpf.Monotonic()); err != nil {
			return errors.Join(err, s.Close())
		}
		select {
		case <-ctx.Done():
			return s.Close()
		case <-tick.C:
		}
	}
}

// kernel is what a keeper needs of [bpf.Sockets].
type kernel interface {
	Current() error
	Generation() uint64
	List() ([]bpf.Socket, error)
	Set(id uint32) (layout.Region, []layout.Backend, bool)
	Remember(p bpf.Pair, since time.Duration) error
	Forget(p bpf.Pair) error
	End(sockets []bpf.Socket, in []bpf.Namespace) ([]bpf.Socket, error)
	Looked(missed int)
}

// keeper ends what is due. Times are those of [bpf.Monotonic].
type keeper struct {
	kernel     kernel
	log        *slog.Logger
	namespaces func() []bpf.Namespace

	memory     memory
	missing    map[uint64]time.Duration // sockets that were found nowhere, and when
	generation uint64
	looked     time.Duration // 0 for never
	due        time.Duration // 0 for never
	complaint  string        // the error that was logged last
}

// glance looks at the sockets if it is time to. Only an error after which nothing
// can be right any more is returned.
func (k *keeper) glance(now time.Duration) error {
	if err := k.kernel.Current(); err != nil {
		return err
	}
	idle := k.looked != 0 && now-k.looked < atLeast
	generation := k.kernel.Generation()
	missed := 0
	if !idle || generation != k.generation || k.due != 0 && k.due <= now {
		var err error
		missed, err = k.look(now)
		k.complain(err)
		k.looked = now
	}
	if generation != k.generation {
		// A socket that was being connected while the set changed shows soon.
		if k.generation = generation; k.due == 0 || k.due > now+pause {
			k.due = now + pause
		}
	}
	k.kernel.Looked(missed)
	return nil
}

// look judges all sockets and returns how many were found nowhere.
func (k *keeper) look(now time.Duration) (missed int, err error) {
	sockets, err := k.kernel.List()
	if err != nil {
		k.due = now + time.Second
		return 0, err
	}
	out := k.memory.look(now, sockets, k.finder())
	k.due = out.next
	var errs []error
	for _, p := range out.remember {
		errs = append(errs, k.kernel.Remember(p, now))
	}
	for _, p := range out.forget {
		errs = append(errs, k.kernel.Forget(p))
	}
	if end := k.leave(now, out.end); len(end) > 0 {
		missed, err = k.end(now, end[:min(len(end), atOnce)])
		errs = append(errs, err)
		k.due = now + pause // for the rest, and to see what is left
	}
	return missed, errors.Join(errs...)
}

// finder reads each set once.
func (k *keeper) finder() func(id uint32) (*set, bool) {
	read := map[uint32]*set{}
	return func(id uint32) (*set, bool) {
		if id == 0 {
			return nil, true
		}
		s, known := read[id]
		if !known {
			if region, backends, ok := k.kernel.Set(id); ok {
				s = newSet(region, backends)
			}
			read[id] = s
		}
		return s, s != nil
	}
}

// leave takes out the sockets that were found nowhere a short while ago, and
// forgets those that are not to end any more.
func (k *keeper) leave(now time.Duration, due []bpf.Socket) (end []bpf.Socket) {
	still := map[uint64]time.Duration{}
	for _, one := range due {
		if at, missing := k.missing[one.Cookie]; missing && now-at < again {
			still[one.Cookie] = at
			continue
		}
		end = append(end, one)
	}
	k.missing = still
	return end
}

func (k *keeper) end(now time.Duration, sockets []bpf.Socket) (missed int, err error) {
	in := k.namespaces()
	defer closeAll(in)
	ended, err := k.kernel.End(sockets, in)
	found := map[uint64]bool{}
	for _, one := range ended {
		found[one.Cookie] = true
		k.log.Debug("ended connection", "frontend", one.Frontend.String(), "backend", one.Backend.String())
	}
	for _, one := range sockets {
		if !found[one.Cookie] {
			k.missing[one.Cookie] = now
		}
	}
	if len(ended) > 0 {
		k.log.Info("ended connections to withdrawn backends", "n", len(ended))
	}
	missed = len(sockets) - len(ended)
	if missed > 0 {
		k.log.Debug("connections to end were in no network namespace that can be seen, or over already", "n", missed)
	}
	return missed, err
}

// complain logs an error once, however often it is met.
func (k *keeper) complain(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != k.complaint {
		k.log.Warn("not all connections to withdrawn backends are ended; check the rights of this process", "err", err)
	}
	k.complaint = text
}
