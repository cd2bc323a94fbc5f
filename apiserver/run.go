package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/apiserver/source"
	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/clustermesh/clustermesh/kvstore/server"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
)

// origin is where the cluster's objects come from.
type origin interface {
	// Run delivers batches to the sink until ctx ends; then it returns nil.
	Run(ctx context.Context, sink source.Sink) error
	// CatchUp returns when the sink has taken everything that services are made
	// of and that there was when it was called.
	CatchUp(ctx context.Context) error
}

// apiserver is what Run's goroutines share.
type apiserver struct {
	config   Config
	certs    *certificates
	log      *slog.Logger
	peers    *peers.Directory // nil without configured peers
	origin   origin
	core     *core
	status   *status
	agents   *agents
	stamps   stamps
	registry *prometheus.Registry
	measures *measures
	events   *events // nil for none
	http     net.Listener
	health   net.Listener // for Cilium's health check, nil for none
	began    time.Time
	// runServer is how a life is run; tests let one fail.
	runServer func(context.Context, *server.Server) error
	lived     bool // a life of the store has started once; used by serve alone
	once      sync.Once
}

// Run serves until ctx ends, and then returns nil within seconds. An error
// means that the apiserver cannot do its work: files or addresses that are not
// usable, or a store that fails again and again.
func Run(ctx context.Context, config Config) error {
	if err := config.Validate(); err != nil {
		return fmt.Errorf("configure apiserver: %w", err)
	}
	a, err := prepare(ctx, config)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

func (a *apiserver) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveHTTP(ctx, "--http", a.http, a.handler()) })
	group.Go(func() error { return serveHTTP(ctx, "--health-listen", a.health, a.ciliumHealth()) })
	group.Go(func() error { return a.serveAPI(ctx) })
	group.Go(func() error { return a.core.run(ctx) })
	group.Go(func() error { return a.certs.run(ctx) })
	group.Go(func() error { return a.events.run(ctx) })
	group.Go(func() error { return a.origin.Run(ctx, a.core.sink(ctx)) })
	if a.peers != nil {
		group.Go(func() error { return a.peers.Run(ctx) })
	}
	group.Go(func() error { return a.serve(ctx) })
	return group.Wait()
}

func prepare(ctx context.Context, config Config) (*apiserver, error) {
	a := &apiserver{config: config, log: config.log(), began: time.Now(), registry: prometheus.NewRegistry(), runServer: runServer}
	var err error
	if a.certs, err = newCertificates(config, a.log); err != nil {
		return nil, err
	}
	if config.Peers != "" {
		// Read before anybody can connect, so that nobody is let in by mistake.
		a.peers = peers.NewDirectory(config.Peers, a.certs.trust, a.log)
		if err := a.peers.Load(); err != nil {
			return nil, fmt.Errorf("--peers %q: %w; create the directory", config.Peers, err)
		}
		a.registry.MustRegister(peerGauges(a.peers)...)
	}
	if a.origin, err = newOrigin(config, a.log); err != nil {
		return nil, err
	}
	a.status, a.agents = newStatus(config), newAgents(config.ClusterName, time.Now)
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), a.status, a.certs, a.agents)
	a.measures = newMeasures(a.registry, config.kinds())
	if a.core, err = newCore(config, a.status, a.agents, a.log); err != nil {
		return nil, err
	}
	if a.events, err = newEvents(config, a.registry, a.status.remoteReaders); err != nil {
		return nil, err
	}
	a.core.events = a.events
	return a, a.listen(ctx)
}

func (a *apiserver) listen(ctx context.Context) (err error) {
	if a.http, err = listen(ctx, "--http", a.config.HTTP); err != nil || !a.config.CiliumCompat {
		return err
	}
	a.registry.MustRegister(newCiliumMetrics(a.config, a.status))
	a.health, err = listen(ctx, "--health-listen", a.config.HealthListen)
	return err
}

// listen returns nil without an address.
func listen(ctx context.Context, flag, at string) (net.Listener, error) {
	if at == "" {
		return nil, nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at)
	if err != nil {
		return nil, fmt.Errorf("listen on %s %q: %w; free the address or choose another", flag, at, err)
	}
	return l, nil
}

func runServer(ctx context.Context, s *server.Server) error { return s.Run(ctx) }

func newOrigin(config Config, log *slog.Logger) (origin, error) {
	if config.Manifests != "" {
		return source.NewManifests(config.Manifests, filepath.Join(config.DataDir, "manifests"), config.wants()), nil
	}
	clients, err := source.Connect(config.Kubeconfig)
	if err != nil {
		return nil, err
	}
	return source.NewKubernetes(clients, config.wants(), log), nil
}

func newCore(config Config, status *status, agents *agents, log *slog.Logger) (*core, error) {
	first, last := schema.IdentityRange(config.ClusterID, config.MaxConnectedClusters)
	// The first number of the range is left out: Cilium counts 65535 (32767)
	// identities per cluster, not one more.
	table := identity.New(identity.Config{First: first + 1, Last: last, Quarantine: identity.DefaultQuarantine})
	j, bad, err := openJournal(filepath.Join(config.DataDir, "identities"), table, time.Now().Unix())
	if err != nil {
		return nil, err
	}
	if bad > 0 {
		log.Warn("journal of identities has damaged lines, which are left out", "n", bad)
	}
	return &core{
		config: config, table: table, journal: j, status: status, log: log, begun: make(chan struct{}), agents: agents,
		batches: make(chan source.Batch), lives: make(chan *life), visits: make(chan chan<- struct{}), problems: map[string]bool{},
	}, nil
}

func (a *apiserver) announce(l *life) {
	if a.config.OnReady == nil {
		return
	}
	addresses := Addresses{Gateway: l.server.Addr()}
	if a.http != nil {
		addresses.HTTP = a.http.Addr()
	}
	if a.health != nil {
		addresses.Health = a.health.Addr()
	}
	a.config.OnReady(addresses)
}

// InCluster reports whether the process runs in a pod with a service account,
// whose cluster is then the default source.
func InCluster() bool { return source.InCluster() }
