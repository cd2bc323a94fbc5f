package bpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// benchBackends is the size of every set.
const benchBackends = 10

// server is where benchmark clients listen, in their own network namespace.
const server = "127.0.0.2:8080"

func newBench(b *testing.B, services int, proto uint8) *fixture {
	b.Helper()
	f := newPlace(b)
	f.opts.MaxFrontends, f.opts.MaxRecords, f.opts.Log = 0, 0, nil
	f.load()
	for i := range services {
		f.service(frontend(i), proto, tenTimes(server)...)
	}
	return f
}

func frontend(i int) string { return fmt.Sprintf("10.%d.%d.%d:80", 96+i>>16, i>>8&255, i&255) }

func frontends(n int) []string {
	list := make([]string, n)
	for i, at := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
		list[i] = frontend(at)
	}
	return list
}

func tenTimes(addr string) []layout.Backend {
	list := make([]layout.Backend, benchBackends)
	for i := range list {
		list[i] = record(netip.MustParseAddrPort(addr))
	}
	return list
}

// benchClient starts a client in a network namespace of its own, in the cgroup
// with or without programs, and there loads the nft rules, if any.
func (f *fixture) benchClient(cgroup, rules string) *client {
	f.Helper()
	cmd := f.inCgroup(cgroup, "bench client", rules)
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	return f.start(cmd)
}

func prepareBenchClient(rules string) error {
	if err := bpftest.RaiseLoopback(); err != nil || rules == "" {
		return err
	}
	// The frontends need a route before netfilter may redirect them.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	all, err := netlink.ParseIPNet("10.0.0.0/8")
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all}); err != nil {
		return err
	}
	out, err := exec.Command("nft", "-f", rules).CombinedOutput()
	if err != nil {
		return fmt.Errorf("load nft rules: %w: %s", err, out)
	}
	return nil
}

// nftRules is the shape of kube-proxy's nftables mode, made cheaper for it: a
// verdict map from the frontend to a chain, but one endpoint per chain.
func nftRules(b *testing.B, services int) string {
	b.Helper()
	var chains, elements strings.Builder
	for i := range services {
		ip, port, _ := strings.Cut(frontend(i), ":")
		fmt.Fprintf(&chains, "chain s%d { meta l4proto tcp dnat to %s\n}\n", i, server)
		fmt.Fprintf(&elements, "%s . tcp . %s : goto s%d,\n", ip, port, i)
	}
	text := "table ip bench {\n" + chains.String() +
		"map services { type ipv4_addr . inet_proto . inet_service : verdict\nelements = {" + elements.String() + "}\n}\n" +
		"chain output { type nat hook output priority -100\nip daddr . meta l4proto . th dport vmap @services\n}\n}\n"
	path := filepath.Join(b.TempDir(), "rules.nft")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

// variant is one way to connect; those of a benchmark are measured in turns.
type variant struct {
	name   string
	client *client
	to     []string
	best   time.Duration
}

// compare measures the variants b.N times in turns and reports the best of each
// and its ratio to the first.
func compare(b *testing.B, socket string, connects int, variants []*variant) {
	b.Helper()
	for b.Loop() {
		for _, v := range variants {
			r, err := v.client.ask(request{Socket: socket, Targets: v.to, N: connects})
			if err != nil {
				b.Fatalf("%s: %v", v.name, err)
			}
			if v.best == 0 || r.Elapsed < v.best {
				v.best = r.Elapsed
			}
		}
	}
	b.ReportMetric(0, "ns/op") // a round, which says nothing
	for _, v := range variants {
		b.ReportMetric(float64(v.best), v.name+"-ns")
		if v != variants[0] {
			b.ReportMetric(float64(v.best)/float64(variants[0].best), v.name+"/"+variants[0].name)
		}
	}
}

// BenchmarkUDPConnect is the cost of the hook: connect() of UDP does little else.
func BenchmarkUDPConnect(b *testing.B) {
	for _, services := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			f := newBench(b, services, udp)
			without, with := f.benchClient(newCgroup(b), ""), f.benchClient(f.opts.Cgroup, "")
			compare(b, "4 udp", 20000, []*variant{
				{name: "none", client: without, to: []string{server}},
				{name: "miss", client: with, to: []string{server}},
				{name: "hot", client: with, to: []string{frontend(0)}},
				{name: "cold", client: with, to: frontends(services)},
			})
			f.noRefusals()
		})
	}
}

// BenchmarkTCPConnect also has netfilter do the same, for as many services as it
// can be told of in a benchmark's time.
func BenchmarkTCPConnect(b *testing.B) {
	for _, services := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			f := newBench(b, services, tcp)
			cgroup := newCgroup(b)
			with := f.benchClient(f.opts.Cgroup, "")
			variants := []*variant{
				{name: "direct", client: f.benchClient(cgroup, ""), to: []string{server}},
				{name: "miss", client: with, to: []string{server}},
				{name: "hot", client: with, to: []string{frontend(0)}},
				{name: "cold", client: with, to: frontends(services)},
			}
			if services <= 1000 {
				variants = append(variants, &variant{name: "nft", client: f.benchClient(cgroup, nftRules(b, services)), to: frontends(services)})
			}
			compare(b, "4 tcp", 2000, variants)
			f.noRefusals()
		})
	}
}

func (f *fixture) noRefusals() {
	f.Helper()
	if c := f.counters(); c.Hits == 0 || c.Refused != 0 || c.Forgotten != 0 {
		f.Errorf("counters: %+v", c)
	}
}

// BenchmarkReplaceSet is one change of a set of 10, as new connections see it.
func BenchmarkReplaceSet(b *testing.B) {
	f := newBench(b, 1, tcp)
	set := tenTimes(server)
	region := layout.Region{Total: benchBackends, Frontend: 1}
	records := f.dp.Capacity().Records
	at := f.next + 1
	for b.Loop() {
		if at+benchBackends > records {
			at = f.next + 1
		}
		f.dp.StoreBackends(at, region, set)
		f.dp.StoreHeader(1, layout.MakeHeader(at, benchBackends, 0))
		at += benchBackends + 1
	}
}

// BenchmarkDump is what a restarted agent reads: 10,000 services of 10 backends.
func BenchmarkDump(b *testing.B) {
	f := newBench(b, 10000, tcp)
	b.ReportAllocs()
	for b.Loop() {
		if got := len(f.dump().Frontends); got != 10000 {
			b.Fatalf("got %d frontends", got)
		}
	}
}

// BenchmarkLoad is a restart: programs loaded, links updated.
func BenchmarkLoad(b *testing.B) {
	f := newBench(b, 1, tcp)
	for b.Loop() {
		f.close()
		f.load()
	}
}

func BenchmarkCounters(b *testing.B) {
	f := newBench(b, 1, tcp)
	for b.Loop() {
		f.counters()
	}
}

func BenchmarkWaitRCU(b *testing.B) {
	f := newBench(b, 1, tcp)
	for b.Loop() {
		f.waitRCU()
	}
}
