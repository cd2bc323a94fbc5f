package agent

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf"
)

// What becomes of connections to withdrawn backends is written into the maps; it
// is carried out by a process beside the agent, package sockets. The agent knows
// of it what that writes into a map.

// sweeper is a kernel that tells of that process.
type sweeper interface{ Sweeps() bpf.Sweeps }

// sweepLimit is how long that process may be silent; it says several times a
// second that it is up to date.
const sweepLimit = 15 * time.Second

// sweeping reports whether connections are ended on this node.
func (c *core) sweeping() bool {
	k, ok := c.kernel.(sweeper)
	if !ok {
		return false
	}
	looked := k.Sweeps().Looked
	return looked != 0 && bpf.Monotonic()-looked < sweepLimit
}

// notEnded says so if what a service wants is not carried out.
func (c *core) notEnded(want lb.OnWithdraw) string {
	if want == lb.WithdrawKeep || c.sweeping() {
		return ""
	}
	return fmt.Sprintf("annotation clustermesh.io/on-withdraw: value %q is not carried out on this node: connections to withdrawn backends are kept, because clustermesh-agent sockets does not run; run it beside the agent, or write keep", want)
}

// noteEnding keeps which services want connections to be ended.
func (c *core) noteEnding(name lb.ServiceName, want lb.OnWithdraw) {
	if want == lb.WithdrawKeep {
		delete(c.ending, name)
	} else {
		c.ending[name] = want
	}
}

// withNotEnded adds to what is wrong with services what is not carried out now.
func (c *core) withNotEnded(wrong map[lb.ServiceName][]string) map[lb.ServiceName][]string {
	if len(c.ending) == 0 || c.sweeping() {
		return wrong
	}
	all := maps.Clone(wrong)
	for name, want := range c.ending {
		if text := c.notEnded(want); text != "" {
			all[name] = append(slices.Clone(all[name]), text)
		}
	}
	return all
}

func (m *collector) collectSweeps(out chan<- prometheus.Metric) {
	k, ok := m.core.kernel.(sweeper)
	if !ok {
		return
	}
	s := k.Sweeps()
	for result, n := range map[string]uint64{"tcp": s.TCP, "udp": s.UDP} {
		out <- prometheus.MustNewConstMetric(m.ended, prometheus.CounterValue, float64(n), result)
	}
	out <- prometheus.MustNewConstMetric(m.unreached, prometheus.CounterValue, float64(s.Missed))
	out <- prometheus.MustNewConstMetric(m.sweeping, prometheus.GaugeValue, boolValue(m.core.sweeping()))
}
