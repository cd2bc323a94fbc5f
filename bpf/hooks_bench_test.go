package bpf

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkHooks is what the programs of connect() and of a socket's end take by
// the kernel's own count, with the two readings of a clock that counting costs.
// Sockets are new ones, each with one connect().
func BenchmarkHooks(b *testing.B) {
	counting, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = counting.Close() })
	const services = 10000
	for _, proto := range []string{"tcp", "udp"} {
		f := newBench(b, services, map[string]uint8{"tcp": tcp, "udp": udp}[proto])
		client := f.benchClient(f.opts.Cgroup, "")
		for _, v := range []variant{{name: "miss", to: []string{server}}, {name: "hot", to: frontends(1)}, {name: "cold", to: frontends(services)}} {
			b.Run(fmt.Sprintf("%s/%s", proto, v.name), func(b *testing.B) {
				const connects = 10000
				before := f.runs(b)
				for b.Loop() {
					if _, err := client.ask(request{Socket: "4 " + proto, Targets: v.to, N: connects}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(0, "ns/op") // of the client
				for name, after := range f.runs(b) {
					took, runs := after.Runtime-before[name].Runtime, after.RunCount-before[name].RunCount
					b.ReportMetric(float64(took)/float64(max(1, runs)), name+"-ns")
				}
			})
		}
	}
}

func (f *fixture) runs(b *testing.B) map[string]*ebpf.ProgramStats {
	b.Helper()
	all := map[string]*ebpf.ProgramStats{}
	for _, name := range []string{"cm_connect4", "cm_release"} {
		stats, err := f.dp.coll.Programs[name].Stats()
		if err != nil {
			b.Fatal(err)
		}
		all[name] = stats
	}
	return all
}
