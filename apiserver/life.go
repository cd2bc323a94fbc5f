package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/clustermesh/clustermesh/kvstore/server"
	"golang.org/x/sync/errgroup"
)

const (
	heartbeatInterval = time.Minute     // readers give up after two
	configInterval    = 5 * time.Minute // as Cilium's exporter
	maxFailedLives    = 5               // in a row, before the process gives up
	goodLife          = time.Minute     // a life that lasted this long was no failure to start
)

// life is one life of the store and what fills it.
type life struct {
	server     *server.Server
	publishers map[schema.Kind]*kvstore.Publisher
	stamper    *stamper
}

func (a *apiserver) newLife() (*life, error) {
	s, err := server.New(server.Config{
		Cluster: a.config.ClusterName, DataDir: a.config.DataDir, Listen: a.config.Listen,
		TLS: a.certs.tls, Trust: a.certs.trust, Peers: a.peerSet(), Log: a.log, Registerer: a.registry,
		Reports: a.agents, QuotaBytes: a.config.QuotaBytes,
	})
	if err != nil {
		return nil, err
	}
	l := &life{server: s, publishers: map[schema.Kind]*kvstore.Publisher{}}
	for _, k := range a.config.kinds() {
		l.publishers[k] = kvstore.NewPublisher(s.Store(), kvstore.PublisherConfig{
			Prefix: schema.WatchPrefix(k, a.config.ClusterName, false),
			Canary: schema.CanaryKey(k, a.config.ClusterName, false),
			Log:    a.log, Acknowledged: a.measures.acknowledged(k),
		})
	}
	l.stamper = a.newStamper(l)
	return l, nil
}

// publish hands records to the publishers; without a life it does nothing,
// because a life begins with everything.
func (l *life) publish(records []export.Record) {
	if l == nil {
		return
	}
	for _, r := range records {
		if p := l.publishers[r.Kind]; r.Value == nil {
			p.Delete(r.Key)
		} else {
			p.Put(r.Key, r.Value)
		}
	}
	if len(records) > 0 {
		l.stamper.touch()
	}
}

// peerSet is nil without configured peers.
func (a *apiserver) peerSet() *peers.Set {
	if a.peers == nil {
		return nil
	}
	return a.peers.Set()
}

func (l *life) synced() {
	if l == nil {
		return
	}
	for _, p := range l.publishers {
		p.Synced()
	}
}

// serve keeps a store alive: when one fails it is replaced by an empty one,
// which the core fills. A first life that does not start, or several in a row
// that fail soon, end the process, for then the operator is needed.
func (a *apiserver) serve(ctx context.Context) error {
	for failures := 0; ; {
		began := time.Now()
		started, err := a.live(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) >= goodLife {
			failures = 0
		}
		failures++
		if !started && failures == 1 && !a.lived || failures >= maxFailedLives {
			return fmt.Errorf("serve the store: %w", err)
		}
		a.status.setStoreFailure(err)
		a.log.Error("store failed, will be rebuilt from the source", "n", failures, "err", err)
		sleep(ctx, time.Second<<(failures-1))
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

var errStoreEnded = errors.New("store server ended without an error")

// live runs one life to its end.
func (a *apiserver) live(ctx context.Context) (started bool, err error) {
	l, err := a.newLife()
	if err != nil {
		return false, err
	}
	a.status.setLife(l)
	defer a.status.setLife(nil)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := a.runServer(ctx, l.server); err != nil || ctx.Err() != nil {
			return err
		}
		return errStoreEnded
	})
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-l.server.Started():
		}
		started, a.lived = true, true
		return a.fill(ctx, l)
	})
	err = group.Wait()
	return started, err
}

// fill writes the cluster's announcement before anything else: a reader that
// finds none has to poll for it. Only then do the publishers run, and with
// them the canaries. What is announced may depend on what the source reads; a
// reader that asks before that is known waits, and keeps what it has.
func (a *apiserver) fill(ctx context.Context, l *life) error {
	store := l.server.Store()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return kvstore.Keep(ctx, store, schema.HeartbeatKey, heartbeatInterval, now, a.keepFailed)
	})
	group.Go(func() error {
		select {
		case <-a.core.begun:
			return a.publish(ctx, l)
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

func (a *apiserver) publish(ctx context.Context, l *life) error {
	store, key := l.server.Store(), schema.ClusterConfigKey(a.config.ClusterName)
	config := a.config.clusterConfig(a.core.reads).Encode()
	if err := store.Apply(ctx, []kvstore.Op{{Key: key, Value: config}}); err != nil {
		return fmt.Errorf("announce the cluster: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return kvstore.Keep(ctx, store, key, configInterval, func() []byte { return config }, a.keepFailed)
	})
	for _, p := range l.publishers {
		group.Go(func() error { return p.Run(ctx) })
	}
	group.Go(func() error { return a.introduce(ctx, l) })
	return group.Wait()
}

func now() []byte { return schema.EncodeTime(time.Now().Unix()) }

func (a *apiserver) keepFailed(err error) {
	a.measures.announce.Inc()
	a.log.Warn("failed to write the cluster's announcement or heartbeat, will retry", "err", err)
}

// introduce gives the life to the core and waits until it is filled.
func (a *apiserver) introduce(ctx context.Context, l *life) error {
	select {
	case a.core.lives <- l:
	case <-ctx.Done():
		return nil
	}
	for _, k := range a.config.kinds() {
		select {
		case <-l.publishers[k].Done():
		case <-ctx.Done():
			return nil
		}
	}
	l.server.SetServing(true)
	a.log.Info("everything is published", "dur", time.Since(a.began))
	a.status.setBootstrap(time.Since(a.began))
	a.once.Do(func() { a.announce(l) })
	return l.stamper.run(ctx)
}
