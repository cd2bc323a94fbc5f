package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// core owns the agent's state. Everything it has is touched by the goroutine
// of run alone; the others hand it functions with do. A function must not
// block.
type core struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	kernel  Kernel
	mesh    *mesh.Mesh
	maps    *datapath.Reconciler

	work    chan func()
	stopped chan struct{}

	problems     []string                         // of cluster files
	peerProblems []string                         // of peer files
	ownProblem   []string                         // with the own cluster's nodes, if any
	admissions   map[string]admission             // by cluster, of those with a peer file
	own          map[string][]netip.Prefix        // ranges by key of the own node that has them
	links        map[string]*link                 // by cluster
	fault        string                           // of pins or attachments, that could not be repaired
	failed       map[lb.ServiceName]error         // services the maps could not take
	wrong        map[lb.ServiceName][]string      // with annotations of services
	spilled      map[lb.ServiceName]spilled       // what decisions remember
	ending       map[lb.ServiceName]lb.OnWithdraw // services that end connections
	ramp         <-chan time.Time                 // when a ramp takes its next step
	rampAt       time.Time
	aged         time.Time        // when the mesh was told the ages of lost contact
	aging        <-chan time.Time // when an age is reached that changes a decision
	agingAt      time.Time
	ownHeard     chan struct{}        // closed when remote clusters need not wait for the own one
	ownLimit     time.Duration        // for which they wait at most
	order        order                // of remote clusters by distance
	later        []lb.ServiceName     // to be decided on anew when nobody's changes are in hand
	always       chan struct{}        // closed
	written      written              // annotations, as they are remembered over restarts
	retry        <-chan time.Time     // when to try the failed ones again
	released     chan datapath.Ticket // grace periods that have passed
	waiting      bool                 // for a grace period
	waiters      sync.WaitGroup       // that use the kernel beside the core
	leaving      map[string]bool      // clusters whose files are gone, for less than the grace
	removed      map[string]time.Time // clusters that were drained lately, when
	moved        chan struct{}        // closed when a marker is acknowledged or a fault ends
	reportWanted chan struct{}        // a token: the own apiserver is to be told soon
	reportEvery  time.Duration
	noted        func(*core, string, schema.Marker) // told of each acknowledgement, for tests; or nil
	turns        []turn                             // that end when the maps are up to date
}

// link is what status says of a cluster besides what the mesh knows.
type link struct {
	endpoint string
	failures uint64
	since    time.Time // of the present state
	state    mesh.State
	// lastError is the one that was logged last; a synced cluster has none.
	lastError string
	lost      time.Time     // out of contact since, zero while in contact; of remote clusters
	again     chan struct{} // asks the cluster's connection for another list of everything
	brake     brake
	checks    *checks // of the control link
	flow      *flow   // of the cluster's changes
	signs     signs   // of life, zero without a lookout
	// nodes are those of a remote cluster by key, if nodes are probed.
	nodes        map[string]netip.Addr
	nodesProblem []string // why they are not followed, if so
	contact      contact
	progress     progress
	newest       chan chan<- newest // asks the cluster's connection for its newest marker
}

// retryPause is how long a service that the maps could not take waits for the
// next try; memory that comes free triggers one earlier.
const retryPause = time.Second

// errStopped is what do answers once the core has ended.
var errStopped = errors.New("agent has stopped")

func newCore(cfg Config, kernel Kernel) (*core, error) {
	c := &core{
		cfg: cfg, log: cfg.Log, kernel: kernel,
		mesh: mesh.New(cfg.meshConfig()), own: map[string][]netip.Prefix{},
		maps: datapath.New(kernel), metrics: newMetrics(cfg.Registry),
		work: make(chan func()), stopped: make(chan struct{}),
		links: map[string]*link{}, failed: map[lb.ServiceName]error{}, released: make(chan datapath.Ticket, 1),
		wrong: map[lb.ServiceName][]string{}, spilled: map[lb.ServiceName]spilled{}, ownHeard: make(chan struct{}), ownLimit: ownLimit,
		leaving: map[string]bool{}, removed: map[string]time.Time{}, moved: make(chan struct{}), reportWanted: make(chan struct{}, 1), reportEvery: reportInterval,
		ending: map[lb.ServiceName]lb.OnWithdraw{}, always: make(chan struct{}),
	}
	close(c.always)
	cfg.Registry.MustRegister(newCollector(c), newLinkCollector(c), newUsageCollector(c))
	c.mesh.SetZone(cfg.Zone)
	c.written = readWritten(cfg.StateDir, c.log)
	c.order = newOrder(nil)
	if cfg.Probe { // else nobody would ever correct what is remembered
		c.order = readOrder(cfg.StateDir, c.log)
		c.mesh.SetRanks(c.order.Ranks())
	}
	return c, c.restore()
}

// do runs f on the core's goroutine and returns after it has run.
func (c *core) do(ctx context.Context, f func(*core)) error {
	done := make(chan struct{})
	select {
	case c.work <- func() { f(c); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stopped:
		return errStopped
	}
}

// turn is a cluster's turn that has not ended.
type turn struct {
	begin time.Time
	ended chan time.Duration
}

// turn runs f on the core's goroutine and returns when the maps are up to date
// with what it did, with how long that took. Who waits for the end of his turn
// gets no second one before all others who wait have had theirs.
func (c *core) turn(ctx context.Context, f func(*core)) (time.Duration, error) {
	t := turn{ended: make(chan time.Duration, 1)}
	select {
	case c.work <- func() { t.begin = time.Now(); f(c); c.turns = append(c.turns, t) }:
		return <-t.ended, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-c.stopped:
		return 0, errStopped
	}
}

func (c *core) endTurns() {
	for _, t := range c.turns {
		t.ended <- time.Since(t.begin)
	}
	c.turns = c.turns[:0]
}

// maxDrain and drainTime bound how many functions run, and for how long, before
// the maps are brought up to date, so that a flood delays nobody's change for
// long.
const (
	maxDrain  = 64
	drainTime = 2 * pieceTime
)

func (c *core) run(ctx context.Context) error {
	defer c.waiters.Wait() // the kernel may be closed after run
	defer close(c.stopped)
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-c.work:
			f()
			c.drain()
		case t := <-c.released:
			c.maps.Release(t)
			c.waiting = false
			c.retryFailed()
		case <-c.retry:
			c.retryFailed()
		case <-c.aging:
			c.age()
		case <-c.ramp:
			c.stepRamps()
		case <-c.more():
			c.decideSome()
		}
		c.flush()
		c.acknowledge()
		c.endTurns()
	}
}

// drain runs what is already waiting: changes that arrive together are applied
// together, without a timer.
func (c *core) drain() {
	begin := time.Now()
	for n := 0; n < maxDrain && time.Since(begin) < drainTime; n++ {
		select {
		case f := <-c.work:
			f()
		default:
			return
		}
	}
}

// flush brings the maps up to date with every service that changed.
func (c *core) flush() {
	for _, name := range c.mesh.Dirty() {
		c.set(name)
	}
	c.awaitGrace()
}

func (c *core) set(name lb.ServiceName) {
	start := time.Now()
	service, tables, _ := c.tables(name)
	_, err := c.maps.Set(name, tables)
	c.metrics.set(time.Since(start), err)
	c.noteWrong(name, &service)
	c.written.note(name, c.mesh.Annotations(name))
	c.awaitAge(c.mesh.Aging(name))
	if err == nil {
		c.remember(service, name, tables)
		if c.failed[name] != nil {
			c.log.Info("service fits into the maps again", "service", name.String())
			c.wakeWaiters()
			c.wantReport()
		}
		delete(c.failed, name)
		return
	}
	c.makeRoom(err)
	if c.failed[name] == nil {
		c.log.Error("service does not fit into the maps; it stays as it was", "service", name.String(), "err", err)
		c.wantReport()
	}
	c.failed[name] = err
	c.retry = time.After(retryPause)
}

// compactAtOnce bounds how many sets one step of compaction moves, so that
// changes do not wait for long.
const compactAtOnce = 64

// makeRoom moves sets together if what is free would suffice but lies apart. The
// service is tried again when the places that were left are free.
func (c *core) makeRoom(err error) {
	var full *datapath.CapacityError
	if errors.As(err, &full) && full.Fragmented && !c.waiting {
		c.maps.Compact(compactAtOnce)
	}
}

func (c *core) retryFailed() {
	c.retry = nil
	for name := range c.failed {
		c.set(name)
	}
}

// awaitGrace starts the wait for the grace period after which memory that
// programs may still read can be reused; one wait at a time serves all.
func (c *core) awaitGrace() {
	ticket, any := c.maps.Quarantined()
	if !any || c.waiting {
		return
	}
	c.waiting = true
	c.waiters.Go(func() {
		if err := c.kernel.WaitRCU(); err != nil {
			c.log.Error("wait for a grace period", "err", err)
			time.Sleep(retryPause) // longer than any program runs
		}
		select {
		case c.released <- ticket:
		case <-c.stopped:
		}
	})
}

// restore takes in what the maps hold from a former life. What no frontend
// leads to becomes free by it, so programs that may still read for the former
// writer must have ended.
func (c *core) restore() error {
	if err := c.kernel.WaitRCU(); err != nil {
		return err
	}
	loaded, err := c.maps.Load()
	if err != nil {
		return err
	}
	for _, r := range loaded.Repairs {
		c.log.Error("pinned maps held an impossible entry", "err", r.String())
	}
	restored := make([]mesh.Restored, len(loaded.Frontends))
	for i, r := range loaded.Frontends {
		s := loaded.Selections[i]
		restored[i] = mesh.Restored{
			Service: r.Service, Frontend: r.Frontend, Affinity: r.Affinity, Backends: r.Backends,
			SessionAffinity: s.SessionAffinity, Consistent: s.Consistent, OnWithdraw: s.OnWithdraw, Drain: s.Drain, Policy: c.written.all[r.Service.String()],
		}
	}
	c.mesh.Restore(restored)
	c.written.prune(c.mesh.Annotations)
	if !c.cfg.Probe {
		c.reviveAll()
	}
	if len(restored) == 0 {
		c.hearAll()
	}
	c.log.Info("took over pinned maps", "n", len(restored))
	return nil
}

// unconfigured lists the clusters that the maps hold backends of and that no
// file configures (yet).
func (c *core) unconfigured() []string {
	var names []string
	for _, s := range c.mesh.Status() {
		if !s.Configured {
			names = append(names, s.Name)
		}
	}
	return names
}

func (c *core) setProblems(lines []string) {
	c.problems = c.logNew("cluster file is refused; its last good state stays", c.problems, lines)
}

func (c *core) addCluster(name string) {
	delete(c.removed, name)
	c.listAgain(c.mesh.AddCluster(name, c.admissions[name].Policy))
}

func (c *core) removeCluster(name string) {
	c.listAgain(c.mesh.RemoveCluster(name))
	c.link(name).brake.stop()
	delete(c.links, name)
	c.order.Set(name, 0)
	c.noteRemoved(name)
	c.age()
	c.log.Info("cluster removed", "cluster", name)
}

func (c *core) connecting(name string) {
	c.lose(name)
	c.link(name).contact.connecting(time.Now())
	c.mesh.Connecting(name)
	c.link(name).progress.restart()
}

func (c *core) link(name string) *link {
	l := c.links[name]
	if l == nil {
		l = &link{since: time.Now(), again: make(chan struct{}, 1), checks: newChecks(), newest: make(chan chan<- newest), flow: newFlow(c.cfg, name)}
		c.links[name] = l
	}
	return l
}

// connected admits a cluster or says why not; fresh is as in
// [mesh.Mesh.Connected].
func (c *core) connected(name, endpoint string, config schema.ClusterConfig) (fresh bool, err error) {
	c.link(name).endpoint = endpoint
	if fresh, err = c.mesh.Connected(name, config); err != nil {
		return false, err
	}
	c.followBrake(name)
	c.wantReport()
	c.log.Info("cluster connected", "cluster", name, "endpoint", endpoint)
	return fresh, nil
}

func (c *core) disconnected(name string, err error) {
	l := c.link(name)
	l.failures++
	l.contact.disconnected(time.Now())
	c.lose(name)
	if name == c.cfg.ClusterName { // its word may be long in coming
		c.hearAll()
	}
	c.mesh.Disconnected(name, err.Error())
	if l.lastError != err.Error() { // once, however often it is tried again
		c.wantReport()
		c.log.Warn("cluster disconnected; its backends stay", "cluster", name, "err", err)
	}
	l.lastError = err.Error()
}

// update takes what a cluster said, and returns for how many records of how many
// services that is work.
func (c *core) update(name string, u kvstore.Update) (records, services int) {
	c.mesh.Work() // that of others
	changes, now := make([]mesh.Change, len(u.Changes)), time.Now().Unix()
	for i, ch := range u.Changes {
		changes[i] = mesh.Change{Key: ch.Key, Value: ch.Value, Deleted: ch.Deleted, Heard: mesh.Heard{Revision: ch.ModRevision, At: now}}
	}
	c.mesh.Apply(name, changes)
	records, services = c.mesh.Work()
	if u.Complete {
		c.link(name).progress.through = u.Revision
	}
	if u.Synced {
		c.mesh.Synced(name)
		c.link(name).contact.synced(time.Now())
		c.regain(name)
		c.wantReport()
		c.log.Info("cluster synced", "cluster", name, "rev", u.Revision)
	}
	c.followBrake(name)
	return records, services
}
