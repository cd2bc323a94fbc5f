package agent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/privilege"
)

// contact is what the agent's clock says of the link to a cluster, for metrics.
type contact struct {
	began    time.Time     // of the present session
	gone     time.Time     // since when it is not synced, zero while it is
	beat     time.Time     // when a heartbeat was last heard, zero for never
	syncTook time.Duration // from the beginning of a session to its being synced, the last time
	syncs    uint64
}

func (k *contact) connecting(now time.Time) {
	k.began = now
	if k.gone.IsZero() {
		k.gone = now
	}
}

func (k *contact) disconnected(now time.Time) {
	if k.gone.IsZero() {
		k.gone = now
	}
}

func (k *contact) synced(now time.Time) {
	k.gone, k.syncTook = time.Time{}, now.Sub(k.began)
	k.syncs++
}

// age is for how long what is known of the cluster may be out of date.
func (k *contact) age(now time.Time) time.Duration {
	if k.gone.IsZero() {
		return 0
	}
	return now.Sub(k.gone)
}

// heard notes a heartbeat.
func (c *core) heard(name string) {
	if l := c.links[name]; l != nil {
		l.contact.beat = time.Now()
	}
}

// linkCollector shows how old what is known of each cluster is.
type linkCollector struct {
	core *core

	dataAge, beatAge, syncTook, syncs, wrong *prometheus.Desc
}

func newLinkCollector(c *core) *linkCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("clustermesh_agent_"+name, help, labels, nil)
	}
	return &linkCollector{
		core:     c,
		dataAge:  desc("cluster_data_age_seconds", "How long a cluster has not been followed, so that what is known of it may be out of date; 0 while it is synced.", "cluster"),
		beatAge:  desc("cluster_heartbeat_age_seconds", "Time since a heartbeat of a cluster's apiserver was last heard; absent before the first.", "cluster"),
		syncTook: desc("cluster_sync_duration_seconds", "Time from beginning to connect to a cluster until all it says was known, the last time.", "cluster"),
		syncs:    desc("cluster_syncs_total", "How often all that a cluster says became known; more than 1 means that it was connected to again.", "cluster"),
		wrong:    desc("services_with_problems", "Services with annotations that are not followed."),
	}
}

// Describe sends nothing: the collector is unchecked, since clusters come and go.
func (m *linkCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the present values; without an answer of the core, none.
func (m *linkCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	links, wrong := map[string]contact{}, 0
	if err := m.core.do(ctx, func(c *core) {
		wrong = len(c.wrong)
		for name, l := range c.links {
			links[name] = l.contact
		}
	}); err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(m.wrong, prometheus.GaugeValue, float64(wrong))
	now := time.Now()
	for name, k := range links {
		m.collectLink(out, name, k, now)
	}
}

func (m *linkCollector) collectLink(out chan<- prometheus.Metric, cluster string, k contact, now time.Time) {
	gauge := func(d *prometheus.Desc, v time.Duration) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v.Seconds(), cluster)
	}
	gauge(m.dataAge, k.age(now))
	out <- prometheus.MustNewConstMetric(m.syncs, prometheus.CounterValue, float64(k.syncs), cluster)
	if !k.beat.IsZero() {
		gauge(m.beatAge, now.Sub(k.beat))
	}
	if k.syncs > 0 {
		gauge(m.syncTook, k.syncTook)
	}
}

// showCapabilities registers what the process may still do.
func showCapabilities(registry prometheus.Registerer) {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "clustermesh_agent_capabilities_held",
		Help: "Linux capabilities that the agent holds: 0, or 1 before Linux 5.19, which is CAP_BPF; more in a binary with cgo.",
	}, func() float64 {
		held, _ := privilege.Held() // reading one's own cannot fail
		return float64(held.Len())
	}))
}
