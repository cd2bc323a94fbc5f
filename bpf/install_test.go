package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
)

// benchTable is service i with n backends, all different.
func benchTable(i, n int) lb.FrontendTable {
	t := table(even(n)...)
	t.Service.Name = fmt.Sprint("s", i)
	t.Frontend = lb.Frontend{Addr: netip.MustParseAddrPort(frontend(i)), Protocol: lb.TCP}
	for k := range t.Backends {
		b := &t.Backends[k]
		b.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, byte(i >> 8), byte(i), byte(k)}), 8080)
		b.Protocol, b.ClusterID = lb.TCP, 1
	}
	return t
}

func benchTables(services, n int) []lb.FrontendTable {
	list := make([]lb.FrontendTable, services)
	for i := range list {
		list[i] = benchTable(i, n)
	}
	return list
}

func setAll(tb testing.TB, r *datapath.Reconciler, tables []lb.FrontendTable) (writes int) {
	tb.Helper()
	for i := range tables {
		report, err := r.Set(tables[i].Service, tables[i:i+1])
		if err != nil {
			tb.Fatal(err)
		}
		writes += report.Writes
	}
	return writes
}

// BenchmarkInstall fills empty tables with services of 10 backends, in turns: ours
// by the reconciler; "single" by one map update per entry in the form of a hash
// of slots and a hash of backends; "nft" by nft -f of one map from frontend and
// random number to backend, its fastest form; "chains" by nft -f of a chain per
// service as kube-proxy writes them, for 10,000 in campaigns only: it takes many
// seconds.
func BenchmarkInstall(b *testing.B) {
	for _, services := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			tables := benchTables(services, benchBackends)
			ways := map[string]func() time.Duration{
				"ours":   func() time.Duration { return installOurs(b, tables) },
				"single": func() time.Duration { return installSingle(b, tables) },
				"nft":    nftInstaller(b, mapRules(tables)),
			}
			if services <= campaign(1000, 10000) {
				ways["chains"] = nftInstaller(b, chainRules(tables))
			}
			best := map[string]time.Duration{}
			for b.Loop() {
				for name, install := range ways {
					if took := install(); best[name] == 0 || took < best[name] {
						best[name] = took
					}
				}
			}
			b.ReportMetric(0, "ns/op") // a round, which says nothing
			for name, took := range best {
				b.ReportMetric(float64(took)/1e6, name+"-ms")
				if name != "ours" {
					b.ReportMetric(float64(took)/float64(best["ours"]), name+"/ours")
				}
			}
		})
	}
}

func installOurs(b *testing.B, tables []lb.FrontendTable) time.Duration {
	f := newPlace(b)
	f.opts.MaxFrontends, f.opts.MaxRecords, f.opts.Log = 0, 0, nil
	f.load()
	r := datapath.New(f.dp)
	begin := time.Now()
	setAll(b, r, tables)
	took := time.Since(begin)
	f.close()
	return took
}

// slotKey finds a service's slot, slot 0 being the service itself.
type slotKey struct {
	Addr [4]byte
	Port [2]byte
	Slot uint16
}

func installSingle(b *testing.B, tables []lb.FrontendTable) time.Duration {
	n := uint32(len(tables) * (benchBackends + 1))
	slots := newBenchMap(b, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 12, MaxEntries: n})
	backends := newBenchMap(b, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 12, MaxEntries: n})
	begin := time.Now()
	id := uint32(0)
	for i := range tables {
		a := tables[i].Frontend.Addr
		k := slotKey{Addr: a.Addr().As4()}
		binary.BigEndian.PutUint16(k.Port[:], a.Port())
		for j := range tables[i].Backends {
			id++
			to := tables[i].Backends[j].Addr
			value := [12]byte{}
			copy(value[:], to.Addr().AsSlice())
			update(b, backends, &id, &value)
			k.Slot = uint16(j + 1)
			slot := [3]uint32{id}
			update(b, slots, &k, &slot)
		}
		k.Slot = 0
		master := [3]uint32{benchBackends}
		update(b, slots, &k, &master)
	}
	return time.Since(begin)
}

func newBenchMap(b *testing.B, spec ebpf.MapSpec) *ebpf.Map {
	m, err := ebpf.NewMap(&spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	return m
}

func update(b *testing.B, m *ebpf.Map, key, value any) {
	if err := m.Update(key, value, ebpf.UpdateAny); err != nil {
		b.Fatal(err)
	}
}

// nftInstaller loads rules in this process's own network namespace.
func nftInstaller(b *testing.B, rules string) func() time.Duration {
	path := filepath.Join(b.TempDir(), "rules.nft")
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		b.Fatal(err)
	}
	return func() time.Duration {
		begin := time.Now()
		if out, err := exec.Command("nft", "-f", path).CombinedOutput(); err != nil {
			b.Fatalf("nft: %v: %.500s", err, out)
		}
		took := time.Since(begin)
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			b.Fatalf("nft: %v: %s", err, out)
		}
		return took
	}
}

func mapRules(tables []lb.FrontendTable) string {
	var elements strings.Builder
	for i := range tables {
		a := tables[i].Frontend.Addr
		for j := range tables[i].Backends {
			to := tables[i].Backends[j].Addr
			fmt.Fprintf(&elements, "%s . tcp . %d . %d : %s . %d,\n", a.Addr(), a.Port(), j, to.Addr(), to.Port())
		}
	}
	return "table ip bench {\nmap services { typeof ip daddr . meta l4proto . th dport . numgen random mod 10 : ip daddr . th dport\nelements = {" +
		elements.String() + "}\n}\nchain output { type nat hook output priority -100\n" +
		"dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 10 map @services\n}\n}\n"
}

func chainRules(tables []lb.FrontendTable) string {
	var chains, elements strings.Builder
	for i := range tables {
		a := tables[i].Frontend.Addr
		fmt.Fprintf(&chains, "chain s%d { meta l4proto tcp dnat ip to numgen random mod %d map {", i, benchBackends)
		for j := range tables[i].Backends {
			to := tables[i].Backends[j].Addr
			fmt.Fprintf(&chains, "%d : %s . %d,", j, to.Addr(), to.Port())
		}
		chains.WriteString("}\n}\n")
		fmt.Fprintf(&elements, "%s . tcp . %d : goto s%d,\n", a.Addr(), a.Port(), i)
	}
	return "table ip bench {\n" + chains.String() +
		"map services { type ipv4_addr . inet_proto . inet_service : verdict\nelements = {" + elements.String() + "}\n}\n" +
		"chain output { type nat hook output priority -100\nip daddr . meta l4proto . th dport vmap @services\n}\n}\n"
}

// newBig is a datapath with maps for 16,384 services and a reconciler.
func newBig(tb testing.TB) (*fixture, *datapath.Reconciler) {
	f := newPlace(tb)
	f.opts.MaxFrontends, f.opts.MaxRecords, f.opts.Log = 0, 1<<20, nil
	f.load()
	return f, datapath.New(f.dp)
}

// BenchmarkAddService adds one service of 10 backends to 10,000, and removes it.
func BenchmarkAddService(b *testing.B) {
	_, r := newBig(b)
	setAll(b, r, benchTables(10000, benchBackends))
	one := []lb.FrontendTable{benchTable(10001, benchBackends)}
	for b.Loop() {
		setAll(b, r, one)
		b.StopTimer()
		if _, err := r.Set(one[0].Service, nil); err != nil {
			b.Fatal(err)
		}
		ticket, _ := r.Quarantined()
		r.Release(ticket) // no program runs
		b.StartTimer()
	}
}

// BenchmarkInstallConsistent makes and writes the tables of 1,000 services, and
// then changes one backend of one.
func BenchmarkInstallConsistent(b *testing.B) {
	for _, backends := range []int{10, 40} {
		tables := benchTables(1000, backends)
		for i := range tables {
			tables[i].Consistent = true
		}
		b.Run(fmt.Sprintf("backends=%d/slots=%d", backends, lb.MaglevSize(backends)), func(b *testing.B) {
			var change time.Duration
			for b.Loop() {
				b.StopTimer()
				f, r := newBig(b)
				b.StartTimer()
				setAll(b, r, tables)
				b.StopTimer()
				other := benchTable(500, backends)
				other.Consistent = true
				other.Backends = other.Backends[1:]
				begin := time.Now()
				setAll(b, r, []lb.FrontendTable{other})
				change = time.Since(begin)
				f.close()
				b.StartTimer()
			}
			b.ReportMetric(float64(change)/1e3, "change-us")
		})
	}
}

// BenchmarkRestart is a restart with 100,000 backends, one service in a hundred
// having changed meanwhile: programs, maps and all tables.
func BenchmarkRestart(b *testing.B) {
	f, r := newBig(b)
	tables := benchTables(10000, benchBackends)
	setAll(b, r, tables)
	writes := 0
	for b.Loop() {
		b.StopTimer()
		f.close()
		for i := 0; i < len(tables); i += 100 {
			set := tables[i].Backends
			set[0].State ^= 1
		}
		b.StartTimer()
		f.load()
		r = datapath.New(f.dp)
		if _, err := r.Load(); err != nil {
			b.Fatal(err)
		}
		writes = setAll(b, r, tables)
	}
	if changed := len(tables) / 100; writes > 2*changed {
		b.Errorf("%d writes for %d changed services", writes, changed)
	}
	b.ReportMetric(float64(writes), "writes")
}

// TestRestartWritesWhatChanged is that benchmark's promise with fewer services.
func TestRestartWritesWhatChanged(t *testing.T) {
	f, r := newBig(t)
	tables := benchTables(300, benchBackends)
	for i := range tables {
		tables[i].Consistent, tables[i].SessionAffinity = i%3 == 0, uint32(i%2)
		tables[i].Backends[0].Weight = uint32(1 + i%4)
	}
	setAll(t, r, tables)
	f.close()
	f.load()
	r = datapath.New(f.dp)
	if _, err := r.Load(); err != nil {
		t.Fatal(err)
	}
	tables[1].Backends[0].State = lb.Terminating
	tables[2].Backends[0].Weight++
	tables[4].SessionAffinity = 7
	if writes := setAll(t, r, tables); writes != 6 {
		t.Errorf("%d writes for 3 changed services", writes)
	}
}
