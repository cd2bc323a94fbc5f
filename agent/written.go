package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// The kernel's maps say which backends there are, not how the own cluster wants
// them weighed. An agent that starts while its own cluster cannot be heard would
// decide without that: a cluster that was given no weight would get traffic. So
// the annotations of services are kept in a file of the state directory.

// writtenFile is the file; writtenLimit bounds what is read of it.
const (
	writtenFile  = "annotations.json"
	writtenLimit = 64 << 20
)

// writtenPause is between two writes of a file.
const writtenPause = time.Second

// written are the annotations of services by namespace/name; each service's are
// never changed, only replaced.
type written struct {
	all     map[string]map[string]string
	changed chan struct{}
}

// readWritten reads the file. Without a good one it knows nothing: the file only
// matters until the own cluster is heard.
func readWritten(dir string, log *slog.Logger) written {
	w := written{all: map[string]map[string]string{}, changed: make(chan struct{}, 1)}
	path := filepath.Join(dir, writtenFile)
	data, err := readBounded(path)
	if err == nil {
		err = json.Unmarshal(data, &w.all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("annotations of a former life are not readable; until the own cluster is heard services have none", "key", path, "err", err)
	}
	if err != nil || w.all == nil {
		w.all = map[string]map[string]string{}
	}
	return w
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.Size() > writtenLimit:
		return nil, fmt.Errorf("read %q: it has %d bytes, more than any agent writes; remove it", path, info.Size())
	}
	return os.ReadFile(path)
}

// prune forgets the services of which nothing was restored: nobody would tell
// when they are gone.
func (w *written) prune(restored func(lb.ServiceName) map[string]string) {
	for key := range w.all {
		namespace, name, _ := strings.Cut(key, "/")
		if restored(lb.ServiceName{Namespace: namespace, Name: name}) == nil {
			delete(w.all, key)
		}
	}
}

// note takes in a service's present annotations.
func (w *written) note(name lb.ServiceName, annotations map[string]string) {
	if len(annotations) == 0 && len(w.all) == 0 {
		return
	}
	key := name.String()
	if maps.Equal(w.all[key], annotations) {
		return
	}
	if len(annotations) == 0 {
		delete(w.all, key)
	} else {
		w.all[key] = annotations
	}
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// keepWritten writes the file after changes until ctx ends.
func (a *Agent) keepWritten(ctx context.Context) error {
	return a.keep(ctx, writtenFile, a.core.written.changed, func(c *core) any { return maps.Clone(c.written.all) })
}

// keep writes a file of the state directory whenever what it holds has changed,
// until ctx ends. A file that cannot be written costs only what it is for.
func (a *Agent) keep(ctx context.Context, name string, changed <-chan struct{}, content func(*core) any) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		var all any
		if a.core.do(ctx, func(c *core) { all = content(c) }) != nil {
			return nil
		}
		if err := writeState(a.cfg.StateDir, name, all); err != nil {
			a.cfg.Log.Error("what the next start should know cannot be kept; check --state-dir", "key", name, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(writtenPause):
		}
	}
}

const (
	// unfinished ends the name of a file that is being written.
	unfinished = ".new"
	// socketName is the usual name of the local API's socket in the directory.
	socketName = "agent.sock"
)

// writeState replaces a file in one step.
func writeState(dir, name string, all any) error {
	data, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+unfinished, data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+unfinished, path)
}

// forgetState removes the files, if there are any, and what an agent that was
// killed could not remove. The caller holds the lock, whose file goes last.
func forgetState(dir string) error {
	var errs []error
	for _, name := range []string{writtenFile, writtenFile + unfinished, orderFile, orderFile + unfinished, socketName, lockFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove what an agent remembers: %w", err))
		}
	}
	return errors.Join(errs...)
}
