package datapath_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// update is one call of Set.
type update struct {
	service lb.ServiceName
	tables  []lb.FrontendTable
}

func serviceName(i int) lb.ServiceName {
	return lb.ServiceName{Namespace: "shop", Name: fmt.Sprintf("svc-%d", i)}
}

// genUpdate draws a service with up to three frontends of its own and, if
// shared is set, one that other services want as well.
func genUpdate(t *rapid.T, shared bool) update {
	i := rapid.IntRange(0, 2).Draw(t, "service")
	s := lb.Service{Name: serviceName(i), Affinity: lb.Affinity(rapid.IntRange(0, 2).Draw(t, "affinity"))}
	for port := range uint16(3) {
		if rapid.Bool().Draw(t, "frontend") {
			s.Frontends = append(s.Frontends, genFrontend(t, fmt.Sprintf("10.96.0.%d", i+1), port+80))
		}
	}
	if shared && rapid.IntRange(0, 3).Draw(t, "shared") == 0 {
		s.Frontends = append(s.Frontends, genFrontend(t, "fd00:96::9", 80))
	}
	s.Backends = rapid.SliceOfN(rapid.Custom(genBackend), 0, 8).Draw(t, "backends")
	s.SessionAffinity = rapid.SampledFrom([]uint32{0, 0, 1, 10800}).Draw(t, "sticky")
	s.Policy.Consistent = rapid.IntRange(0, 2).Draw(t, "consistent") == 0
	s.Policy.OnWithdraw = rapid.SampledFrom([]lb.OnWithdraw{lb.WithdrawKeep, lb.WithdrawKeep, lb.WithdrawDrain, lb.WithdrawReset}).Draw(t, "on-withdraw")
	if s.Policy.OnWithdraw == lb.WithdrawDrain {
		s.Policy.Drain = rapid.SampledFrom([]uint32{1, 30}).Draw(t, "drain")
	}
	tables := lb.Merge(s)
	if rapid.Bool().Draw(t, "weighted") {
		for i := range tables {
			weigh(t, &tables[i])
		}
	}
	return update{s.Name, tables}
}

// weigh gives the selected backends any weights, none and extreme ones too.
func weigh(t *rapid.T, table *lb.FrontendTable) {
	for i := range table.Backends {
		if c := &table.Backends[i]; c.Selected {
			c.Weight = rapid.SampledFrom([]uint32{0, 1, 1, 2, 3, 100, 1<<32 - 1}).Draw(t, "weight")
		}
	}
}

func genFrontend(t *rapid.T, addr string, port uint16) lb.Frontend {
	return lb.Frontend{
		Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), port), Protocol: lb.TCP,
		PortName: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "name"),
		Kind:     rapid.SampledFrom([]lb.Kind{lb.KindClusterIP, lb.KindExternal, lb.KindNodePort}).Draw(t, "kind"),
		Scope:    rapid.SampledFrom([]lb.Scope{lb.ScopeAny, lb.ScopeAny, lb.ScopeOutside, lb.ScopeHost}).Draw(t, "scope"),
	}
}

func genBackend(t *rapid.T) lb.Backend {
	id := rapid.Uint16Range(1, 3).Draw(t, "cluster")
	return lb.Backend{
		Addr: netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"}).Draw(t, "addr")),
			rapid.Uint16Range(1, 3).Draw(t, "port")),
		Protocol: lb.TCP, Cluster: fmt.Sprintf("c%d", id), ClusterID: id, Local: id == 1,
		Names: rapid.SampledFrom([][]string{nil, {"a"}, {"b"}}).Draw(t, "names"),
		Here:  rapid.Bool().Draw(t, "here") && id == 1,
		State: lb.State(rapid.IntRange(0, int(lb.Maintenance)).Draw(t, "state")),
	}
}

// world is the oracle: the tables of each service, and who has which frontend.
type world map[lb.ServiceName][]lb.FrontendTable

func (w world) set(u update) {
	for name, tables := range w {
		var left []lb.FrontendTable
		for _, t := range tables {
			if !u.has(t.Frontend) {
				left = append(left, t)
			}
		}
		w[name] = left
	}
	w[u.service] = u.tables
}

func (u update) has(f lb.Frontend) bool {
	for _, t := range u.tables {
		if t.Frontend.Same(f) {
			return true
		}
	}
	return false
}

func (w world) clone() world {
	out := world{}
	for k, v := range w {
		out[k] = v
	}
	return out
}

func (w world) all() []lb.FrontendTable {
	var out []lb.FrontendTable
	for _, tables := range w {
		out = append(out, tables...)
	}
	return out
}

func want(w world) string { return datapath.Want(w.all()) }

func have(t testing.TB, m *datapath.Memory) string {
	d, err := m.Dump()
	if err != nil {
		t.Fatal(err)
	}
	return datapath.FormatDump(d)
}

// byKey splits a rendering into its frontends, without service and port name: a
// renamed port is rewritten in place.
func byKey(text string) map[string]string {
	out := map[string]string{}
	var key string
	for _, line := range strings.SplitAfter(text, "\n") {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(line, " ") {
			key = f[0]
			line = strings.Join(f[3:], " ") + "\n"
		}
		out[key] += line
	}
	delete(out, "")
	return out
}

// fatal is what *testing.T and *rapid.T have in common.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

func checkSound(t fatal, m *datapath.Memory) {
	t.Helper()
	d, _ := m.Dump()
	for _, err := range datapath.Check(d, m.Capacity()) {
		t.Fatalf("%v", err)
	}
	if v := m.Violations(); len(v) > 0 {
		t.Fatalf("%s", v)
	}
}

// observe checks that each frontend is, at this moment, what it was before or
// what it will be, and absent only if it was or will be, or moves to another
// service.
func observe(t fatal, m *datapath.Memory, before, after world, moves update) {
	t.Helper()
	checkSound(t, m)
	d, _ := m.Dump()
	now, old, next := byKey(datapath.FormatDump(d)), byKey(want(before)), byKey(want(after))
	for _, keys := range []map[string]string{now, old, next} {
		for k := range keys {
			if now[k] == old[k] || now[k] == next[k] || now[k] == "" && strings.Contains(k, "fd00:96") && moved(before, moves) {
				continue
			}
			t.Fatalf("frontend %s is neither old nor new:\n%s\nold:\n%s\nnew:\n%s", k, now[k], old[k], next[k])
		}
	}
}

// moved reports whether u takes a frontend from another service.
func moved(w world, u update) bool {
	for name, tables := range w {
		for _, t := range tables {
			if name != u.service && u.has(t.Frontend) {
				return true
			}
		}
	}
	return false
}

func newMemory(frontends, records uint32) *datapath.Memory {
	return datapath.NewMemory(layout.Capacity{Frontends: frontends, Records: records})
}
