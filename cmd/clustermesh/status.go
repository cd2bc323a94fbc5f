package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentapi "github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/apiserver/api"
)

// statusFlags are the flags of the status command.
type statusFlags struct {
	agent      *string
	apiservers []string
	wait       bool
	timeout    time.Duration
	nodes      []string
	clusters   []string
	stamps     []string
}

const statusHelp = `status shows how this node sees each cluster and its own data path. With
--apiserver-socket it asks a cluster's apiserver instead and shows every node of
that cluster; the flag may be repeated.

States of a cluster: never-connected, connecting, syncing, synced, stale (out of
contact, its last known backends stay), refused, draining (its file is gone and
its backends go), removed. AGE is the time since the newest stamp of the cluster
of which everything is in the node's maps, LAG the time from a stamp to that, half
and 99 of 100 times at most. SERVICES and BACKENDS are what the cluster says now,
PROVISIONAL backends known from before a restart or reconnect, until it is synced.

States of a node: reporting, silent (for 12 s, it did before), missing (exported,
never reported), disputed (two connections report for it).

With --wait it returns once changes are in the maps:

  on an apiserver's socket  the apiserver catches up with what its cluster has now
                            and stamps it; done when every node asked has all of
                            it. With several sockets each is stamped, and the
                            nodes of all wait for all stamps.
  on a node's socket        each cluster is asked for its newest stamp; done when
                            this node has all of them.

Stamps are printed; --for waits for one that was made elsewhere. In the pod of an
apiserver the flag is set: kubectl exec deploy/clustermesh-apiserver -- clustermesh
status --wait.`

func newStatusCommand(a *app) *cobra.Command {
	o := &statusFlags{}
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how nodes see each cluster, or wait until changes are in their maps",
		Long:  statusHelp,
		Example: `  clustermesh status
  clustermesh status --watch
  clustermesh status --wait
  clustermesh status --apiserver-socket /var/lib/clustermesh/apiserver.sock
  clustermesh status --wait --apiserver-socket east.sock --apiserver-socket west.sock
  clustermesh status --wait --for east=1764452000123456-9f2c41d07be6a8f3`,
		Args: cobra.NoArgs,
	}
	f := c.Flags()
	o.agent = socketFlag(watchFlags(c))
	f.StringSliceVar(&o.apiservers, "apiserver-socket", nil, "unix socket of an apiserver's local API, to ask a whole cluster; may be repeated")
	f.BoolVar(&o.wait, "wait", false, "return when every service is programmed as the cluster has it now")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long --wait waits")
	f.StringSliceVar(&o.nodes, "node", nil, "node asked, as NODE or CLUSTER/NODE; may be repeated (with --apiserver-socket; default all)")
	f.StringSliceVar(&o.clusters, "cluster", nil, "cluster asked about; may be repeated (default all)")
	f.StringSliceVar(&o.stamps, "for", nil, "stamp to wait for, as CLUSTER=STAMP; may be repeated")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := o.validate(); err != nil {
			return err
		}
		w, err := watchOf(c.Flags())
		switch {
		case err != nil:
			return err
		case w.on && o.wait:
			return usage(errors.New("--watch: shows status again and again, --wait ends when all is programmed; leave out one"))
		case w.on:
			return a.again(c.Context(), w, func(ctx context.Context) error { return a.status(ctx, o) })
		}
		return a.status(c.Context(), o)
	}
	return c
}

// status shows, or waits, as the flags say.
func (a *app) status(ctx context.Context, o *statusFlags) error {
	switch {
	case len(o.apiservers) > 0 && o.wait:
		return a.waitForClusters(ctx, o)
	case len(o.apiservers) > 0:
		return a.showClusters(ctx, o)
	case o.wait:
		return a.waitForNode(ctx, o)
	}
	return a.showNode(ctx, o)
}

func (o *statusFlags) validate() error {
	problems := []error{positive("timeout", o.timeout)}
	if len(o.nodes) > 0 && len(o.apiservers) == 0 {
		problems = append(problems, fmt.Errorf("--node %q: an agent knows only its own node; give --apiserver-socket as well", o.nodes[0]))
	}
	if len(o.stamps) > 0 && !o.wait {
		problems = append(problems, fmt.Errorf("--for %q: only --wait waits for a stamp; give it as well", o.stamps[0]))
	}
	for _, text := range o.stamps {
		if cluster, stamp, ok := strings.Cut(text, "="); !ok || cluster == "" || stamp == "" {
			problems = append(problems, fmt.Errorf("--for %q: not of the form CLUSTER=STAMP", text))
		}
	}
	for _, name := range o.nodes {
		if !strings.Contains(name, "/") && len(o.apiservers) > 1 {
			problems = append(problems, fmt.Errorf("--node %q: of which cluster? with several apiservers write CLUSTER/NODE", name))
		}
	}
	return usage(problems...)
}

// nodesOf are the nodes asked of a cluster; asked is false if only others are.
func (o *statusFlags) nodesOf(cluster string) (nodes []string, asked bool) {
	for _, name := range o.nodes {
		of, node, qualified := strings.Cut(name, "/")
		switch {
		case !qualified:
			nodes = append(nodes, name)
		case of == cluster:
			nodes = append(nodes, node)
		}
	}
	return nodes, len(nodes) > 0 || len(o.nodes) == 0
}

// concerns reports whether a cluster is asked about.
func (o *statusFlags) concerns(cluster string) bool {
	return len(o.clusters) == 0 || slices.Contains(o.clusters, cluster)
}

// dialSocket opens a local API; it connects with the first question.
func dialSocket(path string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("open socket %q: %w", path, err)
	}
	return conn, nil
}

// apiserverError adds to a failed call whom it asked.
func apiserverError(path string, err error) error {
	if s, ok := status.FromError(err); err != nil && ok {
		return fmt.Errorf("ask the apiserver at %q: %s; check that clustermesh-apiserver runs here and that you may open its socket", path, s.Message())
	}
	return err
}

func (a *app) showNode(ctx context.Context, o *statusFlags) error {
	conn, agent, err := dialAgent(*o.agent)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	r, err := agent.Status(ctx, &agentapi.StatusRequest{})
	if err != nil {
		return agentError(*o.agent, err)
	}
	r.Clusters = slices.DeleteFunc(r.Clusters, func(c *agentapi.Cluster) bool { return !o.concerns(c.GetName()) })
	s := newStatus(r)
	return a.show(s, s.table)
}

// apiserverSocket is one apiserver that is asked.
type apiserverSocket struct {
	path   string
	client api.ApiserverClient
}

// eachApiserver asks all apiservers at once and returns when all have answered.
func (o *statusFlags) eachApiserver(ask func(i int, s apiserverSocket) error) error {
	errs := make([]error, len(o.apiservers))
	var all sync.WaitGroup
	for i, path := range o.apiservers {
		conn, err := dialSocket(path)
		if err != nil {
			errs[i] = err
			continue
		}
		defer conn.Close()
		all.Go(func() {
			errs[i] = apiserverError(path, ask(i, apiserverSocket{path, api.NewApiserverClient(conn)}))
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (a *app) showClusters(ctx context.Context, o *statusFlags) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	views := make(clustersView, len(o.apiservers))
	err := o.eachApiserver(func(i int, s apiserverSocket) error {
		r, err := s.client.Status(ctx, &api.StatusRequest{})
		if err != nil {
			return err
		}
		nodes, asked := o.nodesOf(r.GetCluster())
		views[i] = newClusterStatus(r, func(node string) bool { return asked && (len(nodes) == 0 || slices.Contains(nodes, node)) }, o.concerns)
		return nil
	})
	if err != nil {
		return err
	}
	return a.show(views, views.table)
}

// targets are the stamps given on the command line.
func (o *statusFlags) targets() (out []waitedStamp) {
	for _, text := range o.stamps {
		cluster, stamp, _ := strings.Cut(text, "=")
		out = append(out, waitedStamp{cluster, stamp})
	}
	return out
}

// waitForNode waits for this node.
func (a *app) waitForNode(ctx context.Context, o *statusFlags) error {
	conn, agent, err := dialAgent(*o.agent)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout+askLimit)
	defer cancel()
	request := &agentapi.WaitRequest{Clusters: o.clusters, TimeoutSeconds: o.timeout.Seconds()}
	for _, t := range o.targets() {
		request.Targets = append(request.Targets, &agentapi.Target{Cluster: t.Cluster, Stamp: t.Stamp})
	}
	waiting := a.progress("waiting for this node's maps")
	r, err := agent.Wait(ctx, request)
	waiting.end()
	if err != nil {
		return agentError(*o.agent, err)
	}
	v := newWaited(r.GetDone())
	v.Nodes = 1
	for _, t := range r.GetTargets() {
		v.Stamps = append(v.Stamps, waitedStamp{t.GetCluster(), t.GetStamp()})
	}
	for _, b := range r.GetBehind() {
		v.Behind = append(v.Behind, behindView{Cluster: b.GetCluster(), Reason: b.GetReason()})
	}
	return a.showWaited(v, o)
}

// waitForClusters stamps each cluster and waits for the nodes of all.
func (a *app) waitForClusters(ctx context.Context, o *statusFlags) error {
	v, err := a.stampAndWait(ctx, o)
	if err != nil {
		return err
	}
	return a.showWaited(v, o)
}

func (a *app) stampAndWait(ctx context.Context, o *statusFlags) (waitedView, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout+askLimit)
	defer cancel()
	waiting := a.progress("waiting until all nodes have what their clusters say")
	defer waiting.end()
	deadline := time.Now().Add(o.timeout)
	stamped := make([]waitedStamp, len(o.apiservers))
	err := o.eachApiserver(func(i int, s apiserverSocket) error {
		stamping, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		r, err := s.client.Stamp(stamping, &api.StampRequest{})
		stamped[i] = waitedStamp{r.GetCluster(), r.GetStamp()}
		return err
	})
	if err != nil {
		return waitedView{}, err
	}
	v := newWaited(true)
	for _, s := range append(slices.Clone(stamped), o.targets()...) {
		if o.concerns(s.Cluster) {
			v.Stamps = append(v.Stamps, s)
		}
	}
	answers := make([]*api.WaitResponse, len(o.apiservers))
	err = o.eachApiserver(func(i int, s apiserverSocket) (err error) {
		if nodes, asked := o.nodesOf(stamped[i].Cluster); asked {
			answers[i], err = s.client.Wait(ctx, waitRequest(v.Stamps, nodes, time.Until(deadline)))
		}
		return err
	})
	if err != nil {
		return waitedView{}, err
	}
	for i, r := range answers {
		v.add(stamped[i].Cluster, r)
	}
	return v, nil
}

func waitRequest(stamps []waitedStamp, nodes []string, timeout time.Duration) *api.WaitRequest {
	r := &api.WaitRequest{Nodes: nodes, TimeoutSeconds: max(0, timeout.Seconds())}
	for _, s := range stamps {
		r.Targets = append(r.Targets, &api.Target{Cluster: s.Cluster, Stamp: s.Stamp})
	}
	return r
}

// showWaited prints what was waited for. What is missing is the command's error.
func (a *app) showWaited(v waitedView, o *statusFlags) error {
	if v.Done || a.forMachines() {
		if err := a.show(v, v.table); err != nil || v.Done {
			return err
		}
	}
	return fmt.Errorf("not programmed everywhere after %s:\n%s", o.timeout, strings.Join(v.lines(), "\n"))
}
