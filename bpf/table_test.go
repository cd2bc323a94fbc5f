package bpf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// The table has every combination of family, protocol with its hooks, session
// affinity, selection and situation of the backends. Each case is a service of its
// own, by way of packages lb and datapath, with real clients and real servers;
// what these saw is held against the model.

// tableKind is how the clients of some cases go about it.
type tableKind struct {
	family, protocol, hooks string
	socket                  string // of a client, "" for packets
	proto                   uint8
	bound                   string // the address that a client may bind
	steps                   []string
	answers                 string // of backend %[2]s, by way of the frontend as it shows
}

func socketKinds() (kinds []tableKind) {
	for _, family := range []struct{ name, socket, bound string }{
		{"v4", "4", "127.9.9.1"}, {"v6", "6", "::1"}, {"v4-mapped", "6", "127.9.9.1"},
	} {
		kinds = append(kinds,
			tableKind{family.name, "tcp", "connect,getpeername", family.socket + " tcp", tcp, family.bound,
				[]string{"connect %s", "peer", "recv"}, "ok; %[1]s; %[2]s"},
			tableKind{family.name, "udp-connected", "connect,getpeername,recvmsg", family.socket + " udp", udp, family.bound,
				[]string{"connect %s", "peer", "send", "recv"}, "ok; %[1]s; ok; %[2]s from %[1]s"},
			tableKind{family.name, "udp-sendto", "sendmsg,recvmsg", family.socket + " udp", udp, family.bound,
				[]string{"sendto %s", "recv"}, "ok; %[2]s from %[1]s"})
	}
	return kinds
}

// tableCase is one line of the table.
type tableCase struct {
	tableKind
	sticky    bool
	selection string // plain, weighted or consistent
	situation
}

func (c *tableCase) String() string {
	affinity := "none"
	if c.sticky {
		affinity = "ClientIP"
	}
	return strings.Join([]string{c.family, c.protocol, c.hooks, affinity, c.selection, c.name}, "/")
}

func (c *tableCase) weights() []float64 {
	if c.selection == "weighted" {
		return []float64{1, 2, 3, 4}
	}
	return []float64{1, 1, 1, 1}
}

func tableCases(kinds []tableKind, affinities []bool, selections ...string) (cases []tableCase) {
	for _, kind := range kinds {
		for _, sticky := range affinities {
			for _, selection := range selections {
				for _, s := range situations() {
					cases = append(cases, tableCase{kind, sticky, selection, s})
				}
			}
		}
	}
	return cases
}

// tableWorld is a datapath that cases share. They leave it as they found it.
type tableWorld struct {
	*fixture
	writer  stormWriter
	servers map[string][]netip.AddrPort // by family and protocol
	cases   int
}

func newTableWorld(f *fixture) *tableWorld {
	return &tableWorld{fixture: f, writer: stormWriter{dp: f.dp, r: datapath.New(f.dp)}, servers: map[string][]netip.AddrPort{}}
}

// serving returns the addresses of a kind's four servers, which serve starts.
func (w *tableWorld) serving(c *tableCase, serve func(i int) layout.Backend) []netip.AddrPort {
	key := fmt.Sprint(c.wireFamily(), c.proto)
	if w.servers[key] == nil {
		for i := range 4 {
			w.servers[key] = append(w.servers[key], netip.MustParseAddrPort(addrOf(serve(i))))
		}
	}
	return w.servers[key]
}

func (c *tableCase) wireFamily() string { return strings.TrimSuffix(c.family, "-mapped") }

// service is what package lb is told of a case.
func (c *tableCase) service(frontend string, servers []netip.AddrPort) lb.Service {
	s := lb.Service{
		Name:      lb.ServiceName{Namespace: "table", Name: "case"},
		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort(frontend), Protocol: lb.Protocol(c.proto)}},
	}
	s.Policy.Consistent = c.selection == "consistent"
	if c.sticky {
		s.SessionAffinity = 600
	}
	for i, state := range c.states {
		cluster := fmt.Sprint("c", i+1)
		s.Backends = append(s.Backends, lb.Backend{Addr: servers[i], Protocol: lb.Protocol(c.proto), Cluster: cluster, ClusterID: uint16(i + 1), State: state})
		if c.selection == "weighted" {
			s.Policy.Weights = append(s.Policy.Weights, lb.ClusterWeight{Cluster: cluster, Weight: uint32(i + 1)})
		}
	}
	return s
}

// in puts a case's service into the maps under a frontend that no case had before,
// and takes everything of it away again after work.
func (w *tableWorld) in(t *testing.T, c *tableCase, servers []netip.AddrPort, work func(frontend string)) {
	t.Helper()
	w.cases++
	frontend := fmt.Sprintf("10.97.%d.%d:53", w.cases>>8, w.cases&255)
	if c.wireFamily() == "v6" {
		frontend = fmt.Sprintf("[fd00:97::%x]:53", w.cases)
	}
	s := c.service(frontend, servers)
	w.put(t, s.Name, lb.Merge(s))
	w.withdraw(c.withdrawn, layout.ClusterWithdrawn)
	work(frontend)
	w.withdraw(c.withdrawn, layout.ClusterUp)
	w.put(t, s.Name, nil)
	w.forget(t)
	if w.cases%16 == 0 {
		if err := w.writer.grace(); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *tableWorld) put(t *testing.T, name lb.ServiceName, tables []lb.FrontendTable) {
	t.Helper()
	if _, err := w.writer.r.Set(name, tables); err != nil {
		t.Fatal(err)
	}
}

func (w *tableWorld) withdraw(which [5]bool, state uint32) {
	for id, is := range which {
		if is {
			w.writer.r.SetCluster(uint16(id), fmt.Sprint("c", id), state)
		}
	}
}

// forget ends every session affinity: numbers of frontends come back.
func (w *tableWorld) forget(t *testing.T) {
	t.Helper()
	m := w.dp.coll.Maps[clustermeshMapCmAffinity]
	var k clustermeshCmAffinityKey
	for m.NextKey(nil, &k) == nil {
		if err := m.Delete(&k); err != nil {
			t.Fatal(err)
		}
	}
}

// judge holds the connections that each backend got against the model. seed is the
// client's for consistent selections.
func (c *tableCase) judge(t *testing.T, got map[int]int, seed uint64, servers []netip.AddrPort) {
	t.Helper()
	want := c.shares(c.weights())
	for b, n := range got {
		if want[b] == 0 {
			t.Errorf("backend %d got %d connections and may have none", b, n)
		}
	}
	if c.selection == "consistent" {
		if b := c.consistent(seed, servers); len(got) != 1 || got[b] == 0 {
			t.Errorf("backends %v, want %d alone", got, b)
		}
		return
	}
	if c.sticky {
		if len(got) != 1 {
			t.Errorf("a client with affinity went to %v", got)
		}
		return
	}
	fitShares(t, got, want[:])
}

// fitShares is a chi-square test that right shares fail once in a million runs.
func fitShares(t *testing.T, got map[int]int, shares []float64) {
	t.Helper()
	runs, x, kinds := 0.0, 0.0, -1.0
	for _, n := range got {
		runs += float64(n)
	}
	for b, share := range shares {
		if share > 0 {
			kinds++
			x += (float64(got[b]) - runs*share) * (float64(got[b]) - runs*share) / (runs * share)
		}
	}
	if kinds > 0 && x > chiSquareBound(kinds) {
		t.Errorf("chi-square %.1f over %.1f: %v, want shares %.3f", x, chiSquareBound(kinds), got, shares)
	}
}

// runs is how many connections tell whether a case is right.
func (c *tableCase) runs(measured, others int) int {
	n := 0
	for _, share := range c.shares(c.weights()) {
		if share > 0 {
			n++
		}
	}
	if n > 1 && !c.sticky && c.selection != "consistent" {
		return measured
	}
	return others
}

func (c *tableCase) refused() bool { return c.shares(c.weights()) == [4]float64{} }

// TestTable: whatever the family, the protocol, the hook, the affinity, the
// selection and the state of backends and clusters, a client reaches who may
// answer it, with the right share, sees nobody but the frontend, and gets the
// right error if nobody may answer.
func TestTable(t *testing.T) {
	count := 0
	t.Run("sockets", func(t *testing.T) { count += testSocketTable(t) })
	t.Run("packets", func(t *testing.T) {
		count += testPacketTable(t, false, tableCases(packetKinds(), []bool{false, true}, "plain", "weighted", "consistent"))
	})
	t.Run("packets from outside", func(t *testing.T) {
		count += testPacketTable(t, true, tableCases(packetKinds(), []bool{false}, "plain"))
	})
	t.Logf("%d cases", count)
	if count < 150 {
		t.Errorf("only %d cases", count)
	}
}

func testSocketTable(t *testing.T) int {
	f := newPlace(t)
	f.opts.MaxRecords = 1 << 14
	f.load()
	f.run(1, "4 udp") // starts the client for all cases
	w := newTableWorld(f)
	cases := tableCases(socketKinds(), []bool{false, true}, "plain", "weighted", "consistent")
	for i := range cases {
		c := &cases[i]
		host := map[string]string{"v4": "127.0.0.2:0", "v6": "[::1]:0"}[c.wireFamily()]
		servers := w.serving(c, func(i int) layout.Backend { return w.backend(fmt.Sprint("b", i), host, c.proto) })
		t.Run(c.String(), func(t *testing.T) {
			w.in(t, c, servers, func(frontend string) { w.socketCase(t, c, frontend, servers) })
		})
	}
	return len(cases)
}

// socketCase has sockets without an address, and for consistent selections others
// with one.
func (w *tableWorld) socketCase(t *testing.T, c *tableCase, frontend string, servers []netip.AddrPort) {
	t.Helper()
	if c.refused() {
		w.refusedCase(t, c, frontend)
		return
	}
	cookie, err := netnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	seed := modelSeed(w.dp.settings.all[0].Salt, cookie)
	c.judge(t, w.named(t, c, frontend, c.runs(300, 8)), seed, servers)
	if c.selection == "consistent" && !c.sticky {
		c.judge(t, w.named(t, c, frontend, 8, "bind "+netip.AddrPortFrom(netip.MustParseAddr(c.bound), 0).String()), addressSeed(c.bound), servers)
	}
}

// named counts the backends by what they answer, after any more steps.
func (w *tableWorld) named(t *testing.T, c *tableCase, frontend string, n int, first ...string) map[int]int {
	t.Helper()
	shown, prefix := frontend, strings.Repeat("ok; ", len(first))
	if c.family == "v4-mapped" {
		shown = mapped(frontend)
	}
	expected := map[string]int{}
	for i := range 4 {
		expected[prefix+fmt.Sprintf(c.answers, shown, fmt.Sprint("b", i))] = i
	}
	steps := append([]string(nil), first...)
	for _, step := range c.steps {
		steps = append(steps, strings.ReplaceAll(step, "%s", frontend))
	}
	got := map[int]int{}
	for outcome, n := range w.run(n, c.socket, steps...) {
		b, ok := expected[outcome]
		if !ok {
			t.Errorf("%d times %q", n, outcome)
		}
		got[b] += n
	}
	return got
}

func (w *tableWorld) refusedCase(t *testing.T, c *tableCase, frontend string) {
	t.Helper()
	before := w.counters()
	got := w.run(4, c.socket, strings.ReplaceAll(c.steps[0], "%s", frontend))
	if len(got) != 1 || got["ECONNREFUSED"] != 4 {
		t.Errorf("outcomes %v, want ECONNREFUSED", got)
	}
	after := w.counters()
	empty := uint64(0)
	if len(c.selected()) == 0 {
		empty = 4
	}
	if after.Refused-before.Refused != 4 || after.Empty-before.Empty != empty || after.Hits != before.Hits {
		t.Errorf("counters went from %+v to %+v, want 4 refused, %d of them for want of backends", before, after, empty)
	}
}

// netnsCookie is the kernel's number of this network namespace, which is also that
// of the clients.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
