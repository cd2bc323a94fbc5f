package agent

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
)

// explain answers why a service or an address is used as it is. It runs on the
// core's goroutine.
func (c *core) explain(r *api.ExplainRequest) (*api.ExplainResponse, error) {
	if r.GetAddress() == "" {
		return c.explainNamed(lb.ServiceName{Namespace: r.GetNamespace(), Name: r.GetName()}), nil
	}
	a, err := netip.ParseAddr(r.GetAddress())
	if err != nil || r.GetPort() > 65535 {
		return nil, status.Errorf(codes.InvalidArgument, "address %q, port %d: give an IP address and a port below 65536", r.GetAddress(), r.GetPort())
	}
	return c.explainAddress(a.Unmap(), uint16(r.GetPort())), nil
}

func (c *core) explainNamed(name lb.ServiceName) *api.ExplainResponse {
	e := c.explanation(name)
	out := &api.ExplainResponse{Services: []*api.Explanation{e}}
	for _, r := range c.mesh.Refusals() {
		if r.Concerns(name) {
			out.Refused = append(out.Refused, refusedAnswer(r))
		}
	}
	if !e.GetGlobal() && len(e.GetClusters()) == 0 {
		out.Services = nil
		out.Findings = append([]string{fmt.Sprintf("no cluster has a global service %s: check its name and the annotation service.cilium.io/global: \"true\" in each cluster", name)}, c.unheard()...)
	}
	return out
}

func (c *core) explainAddress(a netip.Addr, port uint16) *api.ExplainResponse {
	out := &api.ExplainResponse{}
	found := c.mesh.Find(a, port)
	for _, name := range found[:min(len(found), mostServices)] {
		out.Services = append(out.Services, c.explanation(name))
	}
	if more := len(found) - mostServices; more > 0 {
		out.Findings = append(out.Findings, fmt.Sprintf("%d more %s this address: ask for them by name", more, english.PluralWord(more, "service has", "services have")))
	}
	for _, r := range c.mesh.Refusals() {
		if slices.Contains(r.Addresses, a) {
			out.Refused = append(out.Refused, refusedAnswer(r))
		}
	}
	for _, s := range c.mesh.Status() {
		if err := c.mesh.Admit(s.Name, lb.ServiceName{}, a); err != nil && s.Configured {
			out.Findings = append(out.Findings, err.Error())
		}
	}
	if len(out.GetServices()) == 0 {
		out.Findings = append(out.Findings, "no service has this address as a frontend or a backend")
		out.Findings = append(out.Findings, c.unheard()...)
	}
	return out
}

func (c *core) explanation(name lb.ServiceName) *api.Explanation {
	e := &api.Explanation{Namespace: name.Namespace, Name: name.Name, Affinity: lb.AffinityNone.String()}
	for _, s := range c.mesh.Shares(name) {
		e.Clusters = append(e.Clusters, shareAnswer(s))
	}
	service, tables, global := c.tables(name)
	e.Global = global
	if global {
		e.Affinity, e.Nearest = service.Affinity.String(), c.nearest(&service)
		marks := c.marks(name)
		for _, t := range tables {
			e.Frontends = append(e.Frontends, &api.Decision{Frontend: frontendAnswer(t.Frontend), Backends: backendAnswers(&service, &t, marks)})
		}
		for _, b := range unmatched(&service) {
			e.Unmatched = append(e.Unmatched, backendAnswer(&service, lb.Choice{Backend: b, Reason: noFrontend}, marks))
		}
	}
	e.Findings = slices.Concat(c.problemsOf(&service), c.nodeOnly(&service), c.outside(name, tables))
	e.Findings = append(e.Findings, c.serviceFindings(name, e, len(service.Backends))...)
	e.Findings = append(e.Findings, c.partFindings(&service, e)...)
	e.Findings = append(e.Findings, c.unheard()...)
	return e
}

func shareAnswer(s mesh.Share) *api.Share {
	out := &api.Share{
		Cluster: s.Cluster, Local: s.Local, State: s.State.String(), Says: s.Says, Unshared: s.Unshared,
		Backends: uint32(s.Backends), Provisional: uint32(s.Provisional), Held: uint32(s.Held), Revision: s.Heard.Revision,
	}
	if s.Heard.At > 0 {
		out.AgeSeconds = max(time.Since(time.Unix(s.Heard.At, 0)), 0).Seconds()
	}
	return out
}

// unmatched are the backends that no frontend can use. A service without
// frontends has another fault.
func unmatched(s *lb.Service) []lb.Backend {
	var out []lb.Backend
	for _, b := range s.Backends {
		if len(s.Frontends) > 0 && !slices.ContainsFunc(s.Frontends, func(f lb.Frontend) bool { return lb.Matches(f, b) }) {
			out = append(out, b)
		}
	}
	return out
}

// partFindings says what is wrong with a cluster's part in a service.
func (c *core) partFindings(s *lb.Service, e *api.Explanation) []string {
	out := portFindings(s)
	says := 0
	for _, share := range e.GetClusters() {
		if share.GetSays() || share.GetProvisional() > 0 {
			says++
		}
		if share.GetUnshared() {
			out = append(out, fmt.Sprintf("not shared: other clusters do not get the backends of cluster %s; remove the annotation service.cilium.io/shared: \"false\" there if they should", share.GetCluster()))
		}
	}
	if others := c.spoken(); e.GetGlobal() && says == 1 && len(others) > 0 {
		out = append(out, fmt.Sprintf("in one cluster only: of %s none shares a service %s; create it there with the same namespace and name and the annotation service.cilium.io/global: \"true\", and see that its namespace is not kept at home and that this cluster may read it",
			strings.Join(others, ", "), s.Name))
	}
	return out
}

// mostServices bounds the services in an answer about an address: a remote
// cluster may name it in any number of them.
const mostServices = 64

// mostListed bounds the names and the ports in a line that is made of what other
// clusters say.
const mostListed = 8

// portFindings names, by cluster, the ports of backends that no frontend can use.
// A remote cluster chooses how many there are, so each line has some of them.
func portFindings(s *lb.Service) []string {
	type ports struct {
		backends int
		names    map[string]bool
	}
	lost := map[string]*ports{}
	for _, b := range unmatched(s) {
		p := lost[b.Cluster]
		if p == nil {
			p = &ports{names: map[string]bool{}}
			lost[b.Cluster] = p
		}
		p.backends++
		p.names[fmt.Sprintf("%s/%s", cmp.Or(some(b.Names, ","), fmt.Sprint(b.Addr.Port())), b.Protocol)] = true
	}
	var out []string
	for _, cluster := range slices.Sorted(maps.Keys(lost)) {
		p := lost[cluster]
		out = append(out, fmt.Sprintf("port names differ: of cluster %s %d %s not used, for the ports there are %s and the service's own are %s; give the ports of the service the same names and protocols in both clusters",
			cluster, p.backends, english.PluralWord(p.backends, "backend is", "backends are"), some(slices.Sorted(maps.Keys(p.names)), " "), portNames(s.Frontends)))
	}
	return out
}

// some joins the first of a list, and says how many more there are.
func some(list []string, separator string) string {
	if more := len(list) - mostListed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:mostListed], separator), more)
	}
	return strings.Join(list, separator)
}

// spoken are the configured clusters besides the own that have said anything
// since the start: of the others nobody knows what they share.
func (c *core) spoken() []string {
	var out []string
	for _, s := range c.mesh.Status() {
		if s.Configured && !s.Local && s.Source != "" {
			out = append(out, s.Name)
		}
	}
	return out
}

func portNames(list []lb.Frontend) string {
	var out []string
	for _, f := range list {
		out = append(out, fmt.Sprintf("%s/%s", cmp.Or(f.PortName, fmt.Sprint(f.Addr.Port())), f.Protocol))
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}

func refusedAnswer(r mesh.Refusal) *api.Refused {
	out := &api.Refused{
		Cluster: r.Cluster, Key: r.Key, Namespace: r.Service.Namespace, Name: r.Service.Name,
		Reason: r.Reason.String(), Text: r.Text, Remedy: r.Reason.Remedy(),
	}
	for _, a := range r.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	return out
}

// serviceFindings says what is wrong with a service.
func (c *core) serviceFindings(name lb.ServiceName, e *api.Explanation, backends int) []string {
	var out []string
	switch {
	case !e.GetGlobal():
		out = append(out, fmt.Sprintf("it is no global service of this cluster, so nothing of it is used here: create it with the annotation service.cilium.io/global: \"true\" in cluster %s", c.cfg.ClusterName))
	case len(e.GetFrontends()) == 0:
		out = append(out, "it has no frontend: a headless service, or one whose addresses other services have")
	}
	for f, holder := range c.mesh.Contested(name) {
		out = append(out, fmt.Sprintf("frontend %s/%s belongs to service %s, whose name comes first; give one of the two another address", f.Addr, f.Protocol, holder))
	}
	slices.Sort(out[max(0, len(out)-len(c.mesh.Contested(name))):])
	if e.GetGlobal() && backends == 0 {
		out = append(out, "no cluster offers a backend: check its selector and the readiness of its pods, and that it is shared by the clusters that have some")
	}
	for _, s := range c.mesh.Status() {
		if err := c.mesh.Admit(s.Name, name, netip.Addr{}); err != nil && s.Configured {
			out = append(out, err.Error())
		}
	}
	if err := c.failed[name]; err != nil {
		out = append(out, "the maps do not hold its latest state: "+err.Error())
	}
	return out
}

// unheard names the clusters that may have more to say, or say nothing at all.
func (c *core) unheard() []string {
	var out []string
	for _, s := range c.mesh.Status() {
		if s.Dead {
			out = append(out, fmt.Sprintf("cluster %s is dead: neither its apiserver nor its backends answer, and they are used only where there are no others", s.Name))
		}
		if s.State == mesh.Synced {
			continue
		}
		line := fmt.Sprintf("cluster %s is %s: what is known of it may be incomplete", s.Name, s.State)
		if s.LastError != "" {
			line += ": " + s.LastError
		}
		out = append(out, line)
	}
	return out
}
