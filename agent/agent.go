// Package agent is the node's side of the mesh: it follows every configured
// cluster, its own included, and keeps the kernel's eBPF maps equal to what
// the clusters say.
//
// One goroutine, the core, owns all state and runs the pure packages mesh, lb
// and datapath; connections, one set of goroutines per cluster, hand it their
// changes and wait until it took them. Stopping the agent changes nothing in
// the kernel.
package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/liveness/probe"
	"github.com/clustermesh/clustermesh/agent/privilege"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
)

// Kernel is what the agent needs of the kernel: the maps, and what surrounds
// them.
type Kernel interface {
	datapath.Kernel
	// WaitRCU returns once no eBPF program that started before the call still
	// runs, so that memory it may have seen can be reused.
	WaitRCU() error
	// Counters reads what the programs counted since they were first loaded.
	Counters() (bpf.Counters, error)
}

// Agent is one node's agent. Make it with [New] and run it once.
type Agent struct {
	cfg  Config
	core *core
	dial dialer
	// probe is what the lookout asks targets with.
	probe prober
	// pause is the time between two looks at pins and attachments.
	pause time.Duration
}

// Run loads and attaches the eBPF programs, or takes over the pinned ones, and
// keeps the node's maps equal to what the clusters say until ctx ends. It
// leaves everything pinned. The configuration must be valid. Before it reads
// anything of a cluster it drops the privileges of the whole process for good.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return err
	}
	lock, err := lockState(cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	cfg.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	options := cfg.bpfOptions()
	if options.HostNetns, err = cfg.hostNetns(); err != nil {
		return err
	}
	kernel, err := bpf.Load(options)
	if err != nil {
		return err
	}
	if err := dropPrivileges(cfg, kernel); err != nil {
		return errors.Join(err, kernel.Close())
	}
	a, err := New(cfg, kernel)
	if err != nil {
		return errors.Join(err, kernel.Close())
	}
	return errors.Join(a.Run(ctx), kernel.Close())
}

// dropPrivileges leaves the process with what it needs to go on with an open
// kernel: reading and writing elements of maps.
func dropPrivileges(cfg Config, kernel Kernel) error {
	kept, err := privilege.Drop(func() error {
		if _, err := kernel.Counters(); err != nil {
			return err
		}
		return kernel.WaitRCU()
	})
	switch {
	case errors.Is(err, privilege.ErrCgo): // what a developer gets from go build; releases are built without
		cfg.Log.Error("privileges are kept", "err", err)
	case err != nil:
		return err
	default:
		cfg.Log.Info("dropped privileges", "key", kept.String(), "n", kept.Len())
	}
	showCapabilities(cfg.Registry)
	return nil
}

// Cleanup detaches the programs and removes every pin, and with them programs
// and maps; traffic goes on without the mesh. It is idempotent, and refuses
// while an agent runs on the same state directory.
func Cleanup(cfg Config) error {
	lock, err := lockState(cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	return errors.Join(bpf.Cleanup(cfg.bpfOptions()), forgetState(cfg.StateDir))
}

func (c Config) bpfOptions() bpf.Options {
	return bpf.Options{PinDir: c.pinDir(), Cgroup: c.Cgroup, MaxFrontends: c.MaxFrontends, MaxRecords: c.MaxRecords, Log: c.Log}
}

// New makes an agent on an open kernel, reading back what the maps hold. The
// kernel stays the caller's to close, after Run has returned.
func New(cfg Config, kernel Kernel) (*Agent, error) {
	cfg = cfg.withDefaults()
	c, err := newCore(cfg, kernel)
	if err != nil {
		return nil, fmt.Errorf("read back the pinned maps: %w", err)
	}
	return &Agent{cfg: cfg, core: c, dial: dialTLS(cfg.Log), probe: probe.Connect, pause: watchPause}, nil
}

// shutdownLimit bounds an orderly end.
const shutdownLimit = 8 * time.Second

// Run works until ctx ends or a part of the agent fails.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.core.run(ctx) })
	g.Go(func() error { return a.watch(ctx) })
	g.Go(func() error { return a.serveHTTP(ctx) })
	g.Go(func() error { return a.serveAPI(ctx) })
	g.Go(func() error { return a.keepWritten(ctx) })
	g.Go(func() error { return a.keepOrder(ctx) })
	g.Go(func() error { return a.lookOut(ctx) })
	policies := make(chan struct{}) // no cluster is heard before they are known
	g.Go(func() error { return a.followPeers(ctx, policies) })
	g.Go(func() error {
		select {
		case <-policies:
			return a.followClusters(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(shutdownLimit):
		return errors.New("stop: a part of the agent did not end in time; the kernel's state is complete all the same")
	}
}

// followClusters runs one remote per cluster file, restarts it when the file
// changes, and drains the cluster when the file is gone.
func (a *Agent) followClusters(ctx context.Context) error {
	running := map[string]*runningRemote{}
	var all sync.WaitGroup
	defer all.Wait()
	stop := func(name string) *runningRemote {
		r := running[name]
		if r != nil {
			r.cancel()
			<-r.done
		}
		delete(running, name)
		return r
	}
	directory := newDirectory(a.cfg.ClustersDir)
	_ = a.core.do(ctx, func(c *core) { directory.expect(c.unconfigured()) })
	return directory.follow(ctx, func(change directoryChange, problems []string) {
		_ = a.core.do(ctx, func(c *core) {
			c.setProblems(problems)
			c.setLeaving(change.leaving)
		})
		for _, name := range change.removed {
			stop(name)
			_ = a.core.do(ctx, func(c *core) { c.removeCluster(name) })
		}
		for name, file := range change.set {
			next := a.newRemote(name, file)
			if former := stop(name); former != nil {
				next.watcher, next.prefix, next.nodes, next.asked = former.watcher, former.prefix, former.nodes, former.asked
			}
			_ = a.core.do(ctx, func(c *core) { c.addCluster(name) })
			running[name] = next.start(ctx, &all)
		}
	})
}

func (a *Agent) newRemote(name string, file clusterfile.File) *remote {
	return &remote{name: name, local: name == a.cfg.ClusterName, file: file, cfg: a.cfg, core: a.core, dial: a.dial}
}

// runningRemote is a remote that was started. Its fields may be read again
// after done is closed.
type runningRemote struct {
	*remote
	cancel context.CancelFunc
	done   chan struct{}
}

func (r *remote) start(ctx context.Context, all *sync.WaitGroup) *runningRemote {
	ctx, cancel := context.WithCancel(ctx)
	run := &runningRemote{remote: r, cancel: cancel, done: make(chan struct{})}
	all.Go(func() {
		defer close(run.done)
		r.run(ctx)
	})
	return run
}

// Check says whether this node has what the agent needs, changing nothing.
func Check(cfg Config) []bpf.Finding {
	findings := append(bpf.Check(cfg.bpfOptions()), bpf.Surroundings(cfg.bpfOptions())...)
	return append(findings, checkKubeProxy())
}
