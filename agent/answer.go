package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/liveness"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// The functions below answer the local API. They run on the core's goroutine.

// notReady says why the node is not ready, or "". A node is ready once its
// maps reflect its own cluster, heard in this life or read back from the last.
func (c *core) notReady() string {
	for _, s := range c.mesh.Status() {
		if !s.Local {
			continue
		}
		if s.State == mesh.Synced || s.Services > 0 || s.Restored > 0 {
			return ""
		}
		why := "own cluster " + s.Name + " is " + s.State.String()
		if s.LastError != "" {
			why += ": " + s.LastError
		} else if c.links[s.Name] == nil {
			why += ": there is no file named " + s.Name + " in the clusters directory"
		}
		return why
	}
	return ""
}

func (c *core) status() *api.StatusResponse {
	out := &api.StatusResponse{
		Cluster: c.cfg.ClusterName, ClusterId: c.cfg.ClusterID, Node: c.cfg.NodeName, Version: c.cfg.Version,
		Ready: c.notReady() == "", Problems: slices.Concat(c.problems, c.peerProblems, c.ownProblem, c.heldLines(), c.lifeLines(), c.nodeProblems(), c.clockLines(), c.wrongLines()), Datapath: c.datapathStatus(),
	}
	now := time.Now()
	for _, s := range c.mesh.Status() {
		l := c.noteState(s, now)
		cluster := &api.Cluster{
			Name: s.Name, Id: s.ID, Local: s.Local, State: s.State.String(), Source: s.Source, Endpoint: l.endpoint,
			Services: uint32(s.Services), Backends: uint32(s.Backends), Failures: l.failures, LastError: s.LastError,
			StateSeconds: now.Sub(l.since).Seconds(), Rejections: rejections(s), Held: uint32(s.Held),
			ProvisionalServices: uint32(s.Provisional.Services), ProvisionalBackends: uint32(s.Provisional.Backends),
		}
		if c.leaving[s.Name] && !s.Local {
			cluster.State = stateDraining
		}
		c.addLife(cluster, l, now)
		addProgress(cluster, &l.progress, now)
		out.Clusters = append(out.Clusters, cluster)
	}
	out.Clusters = append(out.Clusters, c.removedClusters(now)...)
	return out
}

// addProgress adds how far the maps are in the cluster's history.
func addProgress(out *api.Cluster, p *progress, now time.Time) {
	out.Remedy = remedyOf(out.GetLastError())
	if p.marker.Micros == 0 {
		return
	}
	p50, p99 := p.lags.quantiles()
	out.Acknowledged, out.AgeSeconds = p.marker.Stamp.String(), now.Sub(time.UnixMicro(p.marker.Micros)).Seconds()
	out.LagP50Seconds, out.LagP99Seconds, out.LagSamples = p50.Seconds(), p99.Seconds(), uint32(p.lags.count())
}

// addLife adds what the lookout says of a remote cluster.
func (c *core) addLife(out *api.Cluster, l *link, now time.Time) {
	if out.GetLocal() || !c.cfg.Probe {
		return
	}
	out.DataPath, out.RttSeconds, out.RttMinSeconds = l.signs.Data.String(), l.signs.rtt.Seconds(), l.signs.least.Seconds()
	c.addDistance(out, l)
	if l.signs.Verdict == liveness.Dead {
		out.Dead, out.DeadSeconds = true, now.Sub(l.signs.changed).Seconds()
	}
}

// addDistance adds how far a remote cluster and its nodes are.
func (c *core) addDistance(out *api.Cluster, l *link) {
	if c.cfg.ProbeNodePort != 0 {
		out.NodePath, out.NodeRttSeconds = l.signs.Nodes.String(), l.signs.nodeRTT.Seconds()
	}
	if rank, known := c.order.Ranks()[out.GetName()]; known {
		out.DistanceSeconds, out.Rank = time.Duration(c.order.Distance(out.GetName())).Seconds(), uint32(rank)+1
	}
}

// noteState keeps when a cluster's state changed last.
func (c *core) noteState(s mesh.ClusterStatus, now time.Time) *link {
	l := c.links[s.Name]
	if l == nil {
		return &link{since: now}
	}
	if l.state != s.State {
		l.state, l.since = s.State, now
	}
	return l
}

func rejections(s mesh.ClusterStatus) []*api.Rejection {
	var out []*api.Rejection
	for _, r := range s.Rejections {
		out = append(out, &api.Rejection{Reason: r.Reason.String(), Count: r.Total, Example: r.Last})
	}
	return out
}

func (c *core) datapathStatus() *api.Datapath {
	capacity, used := c.kernel.Capacity(), c.maps.Usage()
	d := &api.Datapath{
		Frontends: used.Frontends, FrontendsCapacity: capacity.Frontends - 1,
		Records: capacity.Records - 1 - used.FreeRecords, RecordsCapacity: capacity.Records - 1,
	}
	if n, err := c.kernel.Counters(); err == nil {
		d.Translated, d.Refused = n.Hits, n.Refused
	}
	d.LastError = c.fault
	for _, err := range c.failed {
		d.LastError = max(d.LastError, err.Error())
	}
	return d
}

func (c *core) services(r *api.ServicesRequest) *api.ServicesResponse {
	out := &api.ServicesResponse{}
	for _, name := range c.mesh.Services() {
		if r.GetName() != "" && (name.Namespace != r.GetNamespace() || name.Name != r.GetName()) {
			continue
		}
		if s, tables, ok := c.tables(name); ok {
			answer := serviceAnswer(&s, tables, c.marks(name))
			answer.Problems, answer.Nearest = c.problemsOf(&s), c.nearest(&s)
			out.Services = append(out.Services, answer)
		}
	}
	return out
}

// serviceAnswer lists each backend once: selected if any frontend uses it, with
// the reason of the first frontend that decided.
func serviceAnswer(s *lb.Service, tables []lb.FrontendTable, m marks) *api.Service {
	out := &api.Service{
		Namespace: s.Name.Namespace, Name: s.Name.Name, Affinity: s.Affinity.String(),
		SessionAffinitySeconds: s.SessionAffinity, Consistent: s.Policy.Consistent,
	}
	seen := map[backendKey]*api.Backend{}
	for _, t := range tables {
		out.Frontends = append(out.Frontends, frontendAnswer(t.Frontend))
		out.Ramping = out.Ramping || t.Ramping
		for i, b := range backendAnswers(s, &t, m) {
			choice := &t.Backends[i]
			k := keyOf(&choice.Backend)
			if seen[k] == nil || choice.Selected && !seen[k].Selected {
				seen[k] = b
			}
		}
	}
	for _, b := range s.Backends {
		if k := keyOf(&b); seen[k] == nil {
			seen[k] = backendAnswer(s, lb.Choice{Backend: b, Reason: noFrontend}, m)
		}
	}
	for _, b := range seen {
		out.Backends = append(out.Backends, b)
	}
	slices.SortFunc(out.Backends, compareBackends)
	return out
}

// noFrontend is the reason of a backend that no frontend can use.
const noFrontend = "no-frontend"

type backendKey struct {
	addr     netip.AddrPort
	protocol lb.Protocol
	cluster  string
}

func keyOf(b *lb.Backend) backendKey { return backendKey{b.Addr, b.Protocol, b.Cluster} }

// heldState is how a backend's state is shown that its cluster withdrew.
const heldState = "held"

// marks are backends of a service that are in use although their cluster does
// not say them now.
type marks struct{ held, provisional map[backendKey]bool }

func (c *core) marks(name lb.ServiceName) marks {
	return marks{keysOf(c.mesh.Held(name)), keysOf(c.mesh.Provisional(name))}
}

func keysOf(list []lb.Backend) map[backendKey]bool {
	out := make(map[backendKey]bool, len(list))
	for i := range list {
		out[keyOf(&list[i])] = true
	}
	return out
}

func compareBackends(a, b *api.Backend) int {
	return cmp.Or(
		strings.Compare(a.GetCluster(), b.GetCluster()),
		netip.MustParseAddr(a.GetAddress()).Compare(netip.MustParseAddr(b.GetAddress())),
		cmp.Compare(a.GetPort(), b.GetPort()),
		strings.Compare(a.GetProtocol(), b.GetProtocol()),
	)
}

func frontendAnswer(f lb.Frontend) *api.Frontend {
	return &api.Frontend{
		Address: f.Addr.Addr().String(), Port: uint32(f.Addr.Port()), Protocol: f.Protocol.String(), PortName: f.PortName,
		Kind: f.Kind.String(), Clients: f.Scope.String(),
	}
}

// backendAnswers are those of a table, in its order, with the share of each.
func backendAnswers(s *lb.Service, t *lb.FrontendTable, m marks) []*api.Backend {
	out := make([]*api.Backend, len(t.Backends))
	total := 0.0
	for i, c := range t.Backends {
		out[i] = backendAnswer(s, c, m)
		total += float64(c.Weight)
	}
	for i, c := range t.Backends {
		if c.Weight > 0 {
			out[i].Share = 100 * float64(c.Weight) / total
		}
	}
	return out
}

func backendAnswer(s *lb.Service, c lb.Choice, m marks) *api.Backend {
	key := keyOf(&c.Backend)
	out := &api.Backend{
		Address: c.Addr.Addr().String(), Port: uint32(c.Addr.Port()), Protocol: c.Protocol.String(), Cluster: c.Cluster,
		State: c.State.String(), Selected: c.Selected, Reason: c.Reason,
		Weight: c.Weight, Tier: uint32(s.Tier(c.Cluster, c.Local)), Provisional: m.provisional[key],
	}
	if m.held[key] {
		out.State = heldState
	}
	return out
}

// mapEntries reads the maps back; it is what the kernel does, not what the
// agent believes.
func (c *core) mapEntries() (*api.MapsResponse, error) {
	dump, err := c.kernel.Dump()
	if err != nil {
		return nil, err
	}
	out := &api.MapsResponse{}
	for _, f := range dump.Frontends {
		out.Entries = append(out.Entries, mapEntry(f, dump.Clusters))
	}
	return out, nil
}

func mapEntry(f layout.DumpFrontend, clusters map[uint16]layout.Cluster) *api.MapEntry {
	protocol := lb.Protocol(f.Key.Proto)
	front := &api.Frontend{
		Address: address(f.Key.Addr), Port: port(f.Key.Port), Protocol: protocol.String(), PortName: text(f.Meta.PortName[:]),
		Kind: lb.Kind(f.Meta.Kind).String(), Clients: lb.Scope(f.Key.Scope).String(),
	}
	e := &api.MapEntry{
		Id: f.ID, Namespace: text(f.Meta.Namespace[:]), Name: text(f.Meta.Name[:]), Affinity: lb.Affinity(f.Region.Affinity).String(),
		Offset: f.Header.Offset(), Generation: uint32(f.Header.Generation()),
		Frontend: front,
	}
	for i, b := range f.Backends {
		cluster := clusters[b.Cluster]
		back := &api.Backend{
			Address: address(b.Addr), Port: port(b.Port), Protocol: protocol.String(), Cluster: text(cluster.Name[:]),
			State: lb.State(b.State).String(), Selected: i < int(f.Header.Selected()), Reason: "known",
		}
		if back.Selected {
			back.Reason = "selected"
		}
		e.Backends = append(e.Backends, back)
	}
	return e
}

func address(b [16]byte) string { return netip.AddrFrom16(b).Unmap().String() }

func port(b [2]byte) uint32 { return uint32(b[0])<<8 | uint32(b[1]) }

// text is a NUL-padded string of the maps.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}
