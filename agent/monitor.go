package agent

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf"
)

// monitor is a kernel that can report what its programs choose.
type monitor interface {
	// Monitor calls visit with one of sampleEvery choices until ctx ends.
	Monitor(ctx context.Context, sampleEvery uint32, visit func(bpf.Event)) error
}

// Monitor implements [api.AgentServer].
func (l *local) Monitor(r *api.MonitorRequest, stream api.Agent_MonitorServer) error {
	kernel, ok := l.core.kernel.(monitor)
	if !ok {
		return status.Error(codes.Unimplemented, "this agent's data path reports no choices")
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	names := &names{core: l.core}
	err := kernel.Monitor(ctx, max(r.GetSampleEvery(), 1), func(e bpf.Event) {
		c := names.choice(ctx, e)
		if r.GetName() != "" && (c.GetName() != r.GetName() || c.GetNamespace() != r.GetNamespace()) {
			return
		}
		if err := stream.Send(c); err != nil {
			cancel(err)
		}
	})
	if errors.Is(err, bpf.ErrMonitored) {
		return status.Error(codes.ResourceExhausted, "another monitor runs on this node; end it first")
	}
	return err
}

// names knows what frontends and clusters are called. It is one call's.
type names struct {
	core     *core
	services map[uint32]lb.ServiceName // by number of the frontend
	clusters map[uint16]string
	read     time.Time
}

// staleNames is how long a name that is not known is not asked for again.
const staleNames = time.Second

// choice describes an event by names. What cannot be named any more keeps its
// addresses.
func (n *names) choice(ctx context.Context, e bpf.Event) *api.Choice {
	_, known := n.services[e.ID]
	if !known && time.Since(n.read) > staleNames {
		n.learn(ctx)
	}
	name := n.services[e.ID]
	c := &api.Choice{
		TimeUnixNanos: time.Now().Add(e.SinceBoot - sinceBoot()).UnixNano(),
		Namespace:     name.Namespace, Name: name.Name, Refused: e.Refused, Netns: e.Netns,
		Frontend: &api.Frontend{Address: e.Frontend.Addr().String(), Port: uint32(e.Frontend.Port()), Protocol: lb.Protocol(e.Protocol).String()},
	}
	if !e.Refused {
		c.Address, c.Port, c.Cluster = e.Backend.Addr().String(), uint32(e.Backend.Port()), n.clusters[e.Cluster]
	}
	return c
}

// learn reads the names of everything that the maps hold now.
func (n *names) learn(ctx context.Context) {
	n.read = time.Now()
	_ = n.core.do(ctx, func(c *core) { // after the core's end nothing needs names
		n.services, n.clusters = map[uint32]lb.ServiceName{}, map[uint16]string{}
		for _, s := range c.mesh.Status() {
			n.clusters[uint16(s.ID)] = s.Name
		}
		entries, err := c.mapEntries()
		if err != nil {
			return
		}
		for _, e := range entries.GetEntries() {
			n.services[e.GetId()] = lb.ServiceName{Namespace: e.GetNamespace(), Name: e.GetName()}
		}
	})
}

// sinceBoot is the clock of events.
func sinceBoot() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // always there
	return time.Duration(now.Nano())
}
