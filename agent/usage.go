package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/bpf"
)

// census is a kernel that knows how full its maps are. It counts on the caller's
// goroutine, which is not the core's.
type census interface{ Usage() ([]bpf.Usage, error) }

// usage is how full the maps are that programs fill, nothing if nobody knows.
func (c *core) usage() ([]bpf.Usage, error) {
	k, ok := c.kernel.(census)
	if !ok {
		return nil, nil
	}
	return k.Usage()
}

// addUsage adds it to the maps' content.
func addUsage(out *api.MapsResponse, all []bpf.Usage) {
	for _, u := range all {
		out.Usage = append(out.Usage, &api.MapUsage{Map: u.Map, Entries: u.Entries, Capacity: u.Capacity, AgeSeconds: u.Age.Seconds(), WhenFull: u.WhenFull})
	}
}

// usageCollector shows it as metrics.
type usageCollector struct {
	core              *core
	entries, capacity *prometheus.Desc
}

func newUsageCollector(c *core) *usageCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("clustermesh_datapath_map_"+name, help, []string{"map"}, nil)
	}
	return &usageCollector{
		core:     c,
		entries:  desc("entries", "Entries of the eBPF maps that programs fill, counted at most every minute; those of per-packet balancing while clustermesh-agent devices runs."),
		capacity: desc("capacity", "Entries that fit into these maps. Most of them forget what was used least recently, so they fill up and stay full."),
	}
}

// Describe sends nothing: which maps there are depends on what runs beside.
func (m *usageCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the last counts; without them, none.
func (m *usageCollector) Collect(out chan<- prometheus.Metric) {
	all, err := m.core.usage()
	if err != nil {
		return
	}
	for _, u := range all {
		out <- prometheus.MustNewConstMetric(m.entries, prometheus.GaugeValue, float64(u.Entries), u.Map)
		out <- prometheus.MustNewConstMetric(m.capacity, prometheus.GaugeValue, float64(u.Capacity), u.Map)
	}
}
