package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// remote follows one cluster: it connects, hears what the cluster says of
// itself, waits until that is complete, and hands every change to the core.
// It knows only its own cluster, so whatever one cluster does delays no other.
type remote struct {
	name  string
	local bool // the agent's own cluster
	file  clusterfile.File
	cfg   Config
	core  *core
	dial  dialer
	// watcher remembers across connections which keys below prefix the core has
	// been told of.
	watcher *kvstore.Watcher
	prefix  string
	nodes   nodeWatch
	again   <-chan struct{}      // a token asks for another list of everything
	newest  <-chan chan<- newest // of those who ask for the newest marker
	asked   bool                 // the token was taken
	checks  *checks
	flow    *flow
}

// connection is an open connection to one cluster's store.
type connection interface {
	kvstore.Reader
	Endpoint() string
	Close() error
}

// dialer opens a connection to a cluster of the given name.
type dialer func(ctx context.Context, name string, file clusterfile.File) (connection, error)

// dialTLS is the dialer over the network.
func dialTLS(log *slog.Logger) dialer {
	return func(ctx context.Context, name string, file clusterfile.File) (connection, error) {
		tlsConfig, err := certs.ClientTLS(certs.ClientFiles{Cert: file.CertFile, Key: file.KeyFile, CA: file.TrustedCAFile}, log.With("cluster", name))
		if err != nil {
			return nil, err
		}
		return kvstore.Dial(ctx, kvstore.ConnConfig{Endpoints: file.Endpoints, HostAliases: file.Aliases(), TLS: tlsConfig})
	}
}

// errHeartbeat ends a connection over which no heartbeat arrives any more.
var errHeartbeat = errors.New("no heartbeat from the cluster's apiserver within the limit; check that process and its log")

// run connects and follows until ctx ends.
func (r *remote) run(ctx context.Context) {
	pause := r.cfg.MinBackoff
	_ = r.core.do(ctx, func(c *core) { r.take(c.link(r.name)) })
	r.awaitOwn(ctx)
	for ctx.Err() == nil {
		synced, err := r.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if synced {
			pause = r.cfg.MinBackoff
		}
		if errors.Is(err, errAgain) {
			continue
		}
		r.report(ctx, err)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
		pause = min(2*pause, r.cfg.MaxBackoff)
	}
}

// take keeps by what the core and others ask the connection.
func (r *remote) take(l *link) {
	r.again, r.checks, r.newest, r.flow = l.again, l.checks, l.newest, l.flow
}

func (r *remote) log() *slog.Logger { return r.cfg.Log }

// awaitOwn waits until remote clusters may be heard, see hearAll.
func (r *remote) awaitOwn(ctx context.Context) {
	if r.local {
		return
	}
	limit := time.NewTimer(r.core.ownLimit)
	defer limit.Stop()
	select {
	case <-r.core.ownHeard:
	case <-limit.C:
	case <-ctx.Done():
	}
}

func (r *remote) report(ctx context.Context, err error) {
	if err == nil {
		err = errors.New("connection ended")
	}
	_ = r.core.do(ctx, func(c *core) { c.disconnected(r.name, err) })
}

// session is one connection from dialling to its loss. synced tells whether
// the cluster was once completely heard in it.
func (r *remote) session(ctx context.Context) (synced bool, err error) {
	_ = r.core.do(ctx, func(c *core) { c.connecting(r.name) })
	r.forget()
	conn, err := r.dial(ctx, r.name, r.file)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	side := sideReader{conn, r.flow}
	said, err := r.announce(ctx, side)
	if err != nil {
		return false, err
	}
	life := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.watchHeartbeat(ctx, side) })
	g.Go(func() error { return r.watchConfig(ctx, side, said) })
	g.Go(func() error { return r.awaitAgain(ctx) })
	g.Go(func() error { return r.answerChecks(ctx, conn) })
	g.Go(func() error { return r.followMarker(ctx, side) })
	g.Go(func() error { return r.answerMarkers(ctx, side) })
	if r.local {
		g.Go(func() error { return r.sendReports(ctx, conn) })
	}
	g.Go(func() error { return r.followNodes(ctx, side, said) })
	g.Go(func() error {
		if said.canaries {
			if err := r.awaitCanary(ctx, side, said); err != nil {
				return err
			}
		}
		return r.followServices(ctx, life, conn, said, &synced)
	})
	err = g.Wait()
	return synced, err
}

// errAgain ends a connection because everything is to be listed again.
var errAgain = errors.New("what is accepted of the cluster changed; listing it again")

func (r *remote) awaitAgain(ctx context.Context) error {
	select {
	case <-r.again:
		r.asked = true // the session may be ending for another reason
		return errAgain
	case <-ctx.Done():
		return ctx.Err()
	}
}

// forget makes the next list start from an empty memory if that was asked for.
func (r *remote) forget() {
	select {
	case <-r.again:
		r.asked = true
	default:
	}
	if r.asked {
		r.watcher, r.asked = nil, false
	}
}

// announcement is what matters here of what a cluster says of itself.
type announcement struct {
	id       uint32
	kind     schema.Kind // of the records that its backends are read from
	cached   bool        // they lie below a relay's prefixes
	canaries bool        // to be awaited before they are listed
	revision int64       // of the store that it was read from
}

func (r *remote) announcement(config schema.ClusterConfig, revision int64) announcement {
	said := announcement{
		id: config.ID, kind: schema.ReadServicesFrom(config), cached: config.Capabilities.Cached,
		canaries: config.Capabilities.SyncedCanaries, revision: revision,
	}
	if r.local { // a cluster that speaks Cilium's format only has no records for local agents
		said.kind, said.cached, said.canaries = schema.KindLocalService, false, true
	}
	return said
}

// movedFrom reports whether records are now to be read from other keys, or
// count as another cluster's.
func (a announcement) movedFrom(old announcement) bool {
	return a.id != old.id || a.kind != old.kind || a.cached != old.cached
}

// announce reads the cluster's configuration and asks the core to admit it.
func (r *remote) announce(ctx context.Context, conn connection) (announcement, error) {
	config, revision, err := r.readConfig(ctx, conn)
	if err != nil {
		return announcement{}, err
	}
	var fresh bool
	var admitted error
	if err := r.core.do(ctx, func(c *core) {
		fresh, admitted = c.connected(r.name, conn.Endpoint(), config)
		c.followBrake(r.name) // refused or not: the time to hold what another id would drop runs from here
		c.announced(r.name, revision)
	}); err != nil {
		return announcement{}, err
	}
	if fresh { // the core must be told all again
		r.watcher = nil
	}
	return r.announcement(config, revision), admitted
}

// errNoConfig says that the cluster has no configuration.
var errNoConfig = errors.New("does not exist; check that the file name is the name the remote cluster gives itself and that its apiserver is ready")

// readConfig also returns the store's revision at which the configuration was
// read.
func (r *remote) readConfig(ctx context.Context, conn connection) (config schema.ClusterConfig, revision int64, err error) {
	key := schema.ClusterConfigKey(r.name)
	found, err := conn.Range(ctx, key, "", 1, 0)
	switch {
	case err != nil:
		return config, 0, fmt.Errorf("read cluster config: %w", err)
	case len(found.KVs) == 0:
		return config, found.Revision, fmt.Errorf("read cluster config: key %q %w", key, errNoConfig)
	}
	config, err = schema.DecodeClusterConfig(r.name, found.KVs[0].Value)
	return config, found.Revision, err
}

// errMoved ends a connection whose cluster announces that its records are to
// be read otherwise.
var errMoved = errors.New("the cluster changed its id or where its services are read from; connecting again to read them from there")

// watchConfig fails when the cluster announces something else than it did at
// the beginning. An apiserver does so with a new life only, a relay whenever
// the cluster behind it does. What cannot be decoded counts at the next
// connection. Of a range, even if of one key, progress is told too.
func (r *remote) watchConfig(ctx context.Context, conn connection, said announcement) error {
	key := schema.ClusterConfigKey(r.name)
	return conn.Watch(ctx, key, key+"\x00", said.revision+1, func(changes kvstore.Changes) error {
		if changes.Revision < said.revision {
			return fmt.Errorf("watch the cluster's config: %w: revision %d after %d", kvstore.ErrLifeChanged, changes.Revision, said.revision)
		}
		for _, ch := range changes.Changes {
			if ch.Key != key || ch.Deleted {
				continue
			}
			config, err := schema.DecodeClusterConfig(r.name, ch.Value)
			if err == nil && r.announcement(config, 0).movedFrom(said) {
				return errMoved
			}
		}
		return r.core.do(ctx, func(c *core) { c.announced(r.name, changes.Revision) })
	})
}

// watchHeartbeat fails when no heartbeat arrives within the limit.
func (r *remote) watchHeartbeat(ctx context.Context, conn connection) error {
	beats := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		w := kvstore.NewWatcher(oneKey(schema.HeartbeatKey))
		return w.Follow(ctx, conn, func(u kvstore.Update) error {
			if len(u.Changes) == 0 {
				return nil
			}
			select {
			case beats <- struct{}{}:
			default:
			}
			return r.core.do(ctx, func(c *core) { c.heard(r.name) })
		})
	})
	g.Go(func() error { return expectBeats(ctx, beats, r.cfg.HeartbeatTimeout) })
	return g.Wait()
}

func expectBeats(ctx context.Context, beats <-chan struct{}, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beats:
			timer.Reset(limit)
		case <-timer.C:
			return errHeartbeat
		}
	}
}

// oneKey is for following a key whose value is short.
func oneKey(key string) kvstore.WatcherConfig {
	return kvstore.WatcherConfig{Prefix: key, MaxKeys: 16, MaxBytes: 64 << 10}
}

// errCanarySeen ends the watch for the canary.
var errCanarySeen = errors.New("canary seen")

// awaitCanary returns once the cluster has declared the records that are read
// complete. A list taken earlier might be partial, and what it lacks would be
// dropped.
func (r *remote) awaitCanary(ctx context.Context, conn connection, said announcement) error {
	if err := awaitKey(ctx, conn, schema.CanaryKey(said.kind, r.name, said.cached)); err != nil {
		return fmt.Errorf("wait for the cluster's first complete publication of its %s: %w", said.kind, err)
	}
	return nil
}

// awaitKey returns once a key exists.
func awaitKey(ctx context.Context, conn connection, key string) error {
	w := kvstore.NewWatcher(oneKey(key))
	err := w.Follow(ctx, conn, func(u kvstore.Update) error {
		for _, c := range u.Changes {
			if c.Key == key && !c.Deleted {
				return errCanarySeen
			}
		}
		return nil
	})
	if errors.Is(err, errCanarySeen) {
		return nil
	}
	return err
}

// What one cluster may make this node hold; the mesh bounds what it keeps of it
// more tightly.
const (
	maxKeys  = 50_000
	maxBytes = 128 << 20
)

func (r *remote) watcherConfig(prefix string) kvstore.WatcherConfig {
	return kvstore.WatcherConfig{Prefix: prefix, MaxKeys: maxKeys, MaxBytes: maxBytes}
}

// followServices hands the core every change of the cluster's services. life
// lasts longer than the session: what was read is handed over also when the
// connection is lost meanwhile, since the watcher counts it as told.
func (r *remote) followServices(ctx, life context.Context, conn connection, said announcement, synced *bool) error {
	prefix := schema.WatchPrefix(said.kind, r.name, said.cached)
	if r.watcher == nil || r.prefix != prefix {
		config := r.watcherConfig(prefix)
		if err := r.core.do(ctx, func(c *core) { c.relist(r.name, &config) }); err != nil {
			return err
		}
		r.watcher, r.prefix = kvstore.NewWatcher(config), prefix
	}
	ctx, stop := context.WithCancel(ctx)
	box, delivered := newInbox(), make(chan error)
	go func() {
		err := r.deliver(life, box, synced)
		stop()
		delivered <- err
	}()
	err := r.watcher.Follow(ctx, conn, func(u kvstore.Update) error {
		before := said.revision
		err := r.confirm(ctx, sideReader{conn, r.flow}, &said, u)
		if err == nil && said.revision > before {
			err = r.core.do(ctx, func(c *core) { c.announced(r.name, said.revision) })
		}
		if err != nil {
			return err
		}
		return box.put(ctx, u)
	})
	box.close()
	if err := <-delivered; err != nil {
		return err
	}
	return fmt.Errorf("follow %s: %w", said.kind, err)
}

// confirm looks at the announcement again before deletions are believed that
// came after it was last read. A relay whose cluster ceases to publish a kind
// of record says so before it withdraws the records; that the watch of the
// announcement tells it in time is not certain. One look serves all deletions
// up to its revision, so a burst of them costs one or two.
func (r *remote) confirm(ctx context.Context, conn connection, said *announcement, u kvstore.Update) error {
	// A complete list says of what is not in it that it is gone.
	deleted := u.Synced || slices.ContainsFunc(u.Changes, func(c kvstore.Change) bool { return c.Deleted })
	if !deleted || u.Revision <= said.revision {
		return nil
	}
	config, revision, err := r.readConfig(ctx, conn)
	switch {
	case err == nil && r.announcement(config, 0).movedFrom(*said):
		return errMoved
	case err != nil && revision == 0: // contact lost
		return err
	}
	said.revision = revision
	return nil
}
