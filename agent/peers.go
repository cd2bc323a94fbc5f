package agent

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// peerDirectory is what the directory of peer files said when it was last
// read: the last good state per cluster, and what is wrong with files.
type peerDirectory struct {
	path        string
	maxClusters uint32
	place       place
	known       map[string]admission // by cluster
	problems    map[string]string    // by file name
	absent      absences             // clusters whose file is missing, since when
}

func newPeerDirectory(path string, maxClusters uint32) *peerDirectory {
	return &peerDirectory{path: path, maxClusters: maxClusters, known: map[string]admission{}, absent: absences{}}
}

const peerSuffix = ".yaml"

// scan reads the directory once. A bad file leaves its last good state in
// force; a cluster whose file was never good is not accepted at all, since what
// its file restricts is not known. recheck is when to scan again at the
// latest, or 0.
func (d *peerDirectory) scan(now time.Time) (recheck time.Duration, err error) {
	entries, err := d.place.list(d.path)
	if err != nil {
		return removalGrace, fmt.Errorf("read peers directory %q: %w; create it or correct --peers", d.path, err)
	}
	d.problems = map[string]string{}
	present := map[string]bool{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), peerSuffix)
		if strings.HasPrefix(name, ".") {
			continue
		}
		if other, yml := strings.CutSuffix(name, ".yml"); yml && !present[other] { // .yaml comes before
			present[other] = true
			d.bad(other, fmt.Errorf("%s: is not read; rename it to end in %s", filepath.Join(d.path, name), peerSuffix))
		}
		if !ok {
			continue
		}
		present[name] = true
		d.read(name)
	}
	return d.missing(present, now), nil
}

func (d *peerDirectory) read(name string) {
	path := filepath.Join(d.path, name+peerSuffix)
	a, err := readPeerFile(path, d.maxClusters)
	if err == nil {
		err = schema.ValidateClusterName(name)
	}
	if err == nil {
		d.known[name] = a
		return
	}
	d.bad(name, fmt.Errorf("%s: %w", path, err))
}

// bad leaves the last good state of a cluster in force.
func (d *peerDirectory) bad(name string, err error) {
	d.problems[name] = strings.ReplaceAll(err.Error(), "\n", "; ")
	if last, ok := d.known[name]; !ok || last.Refuse != "" {
		d.known[name] = admission{Policy: mesh.Policy{Refuse: "its peer file is not usable, so what it may say is not known: " + d.problems[name]}}
	}
}

// missing forgets the files that are gone for long enough.
func (d *peerDirectory) missing(present map[string]bool, now time.Time) (recheck time.Duration) {
	removed, recheck := d.absent.over(maps.Keys(d.known), present, now)
	for _, name := range removed {
		delete(d.known, name)
	}
	return recheck
}

func (d *peerDirectory) problemLines() []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(d.problems)) {
		lines = append(lines, d.problems[name])
	}
	return lines
}

// followPeers applies the peer files once, then closes ready, and then applies
// every change of them until ctx ends. Without a directory there is nothing to
// do. That the directory cannot be read at the beginning is an error: what it
// restricts would not be restricted.
func (a *Agent) followPeers(ctx context.Context, ready chan<- struct{}) error {
	if a.cfg.PeersDir == "" {
		close(ready)
		return nil
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch peers directory: %w", err)
	}
	defer w.Close()
	if err := w.Add(a.cfg.PeersDir); err != nil {
		return fmt.Errorf("watch peers directory %q: %w; create it or correct --peers", a.cfg.PeersDir, err)
	}
	d := newPeerDirectory(a.cfg.PeersDir, a.cfg.MaxConnectedClusters)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		recheck, err := d.scan(time.Now())
		problems := d.problemLines()
		if err != nil {
			if ready != nil {
				return err
			}
			problems = append(problems, err.Error())
		}
		timer.Reset(again(w, d.path, recheck))
		if err := a.core.do(ctx, func(c *core) { c.setAdmissions(maps.Clone(d.known), problems) }); err != nil {
			return nil // stopped
		}
		if ready != nil {
			close(ready)
			ready = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
		case <-w.Errors: // an overflow lost events: what counts is the directory as it is now
		case <-timer.C:
		}
	}
}

// setAdmissions takes over what peer files say. Clusters of which more may be
// accepted now are listed again.
func (c *core) setAdmissions(all map[string]admission, problems []string) {
	before := c.admissions
	c.admissions = all
	c.peerProblems = c.logNew("peer file is not usable; its last good state stays", c.peerProblems, problems)
	for _, s := range c.mesh.Status() {
		if s.Local || !s.Configured {
			continue
		}
		was, is := before[s.Name], all[s.Name]
		again := c.mesh.SetPolicy(s.Name, is.Policy)
		if len(again) > 0 {
			c.log.Info("what is accepted of a cluster changed", "cluster", s.Name)
		} else if was.maxKeys != is.maxKeys || was.maxBytes != is.maxBytes {
			again = []string{s.Name}
		}
		c.listAgain(again)
		c.followBrake(s.Name)
	}
}

// relist expects a cluster to be heard from an empty memory, and bounds that
// memory as its peer file says.
func (c *core) relist(name string, config *kvstore.WatcherConfig) {
	c.mesh.Relist(name)
	if a := c.admissions[name]; a.maxKeys > 0 {
		config.MaxKeys = a.maxKeys
	}
	if a := c.admissions[name]; a.maxBytes > 0 {
		config.MaxBytes = a.maxBytes
	}
}

// listAgain makes the named clusters be heard from an empty memory.
func (c *core) listAgain(names []string) {
	for _, name := range names {
		select {
		case c.link(name).again <- struct{}{}:
		default: // it is to be done already
		}
	}
}

// logNew logs the lines that were not there before, and returns all of them.
func (c *core) logNew(message string, before, lines []string) []string {
	for _, p := range lines {
		if !slices.Contains(before, p) {
			c.log.Error(message, "err", p)
		}
	}
	return lines
}
