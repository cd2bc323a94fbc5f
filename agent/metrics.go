package agent

import (
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/bpf"
)

// metrics are the agent's metrics. All but those that count events are read
// from the core when Prometheus asks, so that an event costs nothing for them.
type metrics struct {
	updates *prometheus.HistogramVec
	repairs *prometheus.CounterVec
	faults  prometheus.Gauge
	// reordered counts changes of the order of nearest clusters.
	reordered prometheus.Counter
	lag       *prometheus.HistogramVec
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{updates: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "clustermesh_agent_service_update_duration_seconds",
		Help:    "Time to merge one changed service and bring the eBPF maps up to date, by result.",
		Buckets: prometheus.ExponentialBuckets(2e-6, 4, 10),
	}, []string{"result"})}
	m.repairs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "clustermesh_agent_repairs_total",
		Help: "Pins and attachments of the agent that somebody had changed and that were put right, by kind.",
	}, []string{"kind"})
	m.faults = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "clustermesh_agent_faults",
		Help: "Pins and attachments of the agent that are not as they should be and could not be put right yet.",
	})
	m.lag = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "clustermesh_agent_propagation_lag_seconds",
		Help:    "Time from a cluster's stamp to everything before it being in the eBPF maps, by the two clocks, by cluster.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12),
	}, []string{"cluster"})
	for _, kind := range bpf.RepairKinds() {
		m.repairs.WithLabelValues(kind)
	}
	m.reordered = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "clustermesh_agent_cluster_order_changes_total",
		Help: "Changes of the order of remote clusters by distance, after which services with tiers of the nearest clusters are decided on anew.",
	})
	registry.MustRegister(m.updates, m.repairs, m.faults, m.reordered, m.lag)
	return m
}

func (m *metrics) set(took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.updates.WithLabelValues(result).Observe(took.Seconds())
}

// collector turns the core's status into metrics at each scrape.
type collector struct {
	core *core

	build, ready, problems, failed            *prometheus.Desc
	state, services, backends, failures       *prometheus.Desc
	rejections, held, putOff, provisional     *prometheus.Desc
	alive, dataPath, nodePath, rtt, age       *prometheus.Desc
	distance, rank                            *prometheus.Desc
	frontends, frontendsMax, records, recsMax *prometheus.Desc
	lookups, retries, forgotten               *prometheus.Desc
	hits, reasons                             *prometheus.Desc
	ended, unreached, sweeping                *prometheus.Desc
}

func newCollector(c *core) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("clustermesh_"+name, help, labels, nil)
	}
	return &collector{
		core:         c,
		build:        desc("build_info", "Always 1; what runs.", "component", "version", "revision", "go_version"),
		ready:        desc("agent_ready", "1 once the maps reflect the own cluster."),
		problems:     desc("agent_cluster_file_problems", "Files of the clusters and peers directories that are refused."),
		failed:       desc("agent_services_failed", "Services whose latest state the maps could not take."),
		state:        desc("agent_cluster_state", "1 for the state each cluster is in.", "cluster", "state"),
		services:     desc("agent_cluster_services", "Services a cluster says it has.", "cluster"),
		backends:     desc("agent_cluster_backends", "Backends a cluster says it has.", "cluster"),
		failures:     desc("agent_cluster_failures_total", "Connections to a cluster that failed or ended.", "cluster"),
		rejections:   desc("agent_cluster_rejections_total", "Records of a cluster that were not accepted, by reason.", "cluster", "reason"),
		held:         desc("agent_cluster_held_backends", "Backends that a cluster withdrew all at once and that are held in use.", "cluster"),
		provisional:  desc("agent_cluster_provisional_backends", "Backends of a cluster in use from before a reconnect or a restart that it has not said again.", "cluster"),
		putOff:       desc("agent_cluster_put_off_seconds_total", "Time for which changes of a cluster were put off because they take more than its share of the processors.", "cluster"),
		alive:        desc("agent_cluster_alive", "0 while neither a remote cluster's apiserver nor its backends answer, 1 otherwise.", "cluster"),
		dataPath:     desc("agent_cluster_data_path", "1 for the state of the path to a remote cluster's backends.", "cluster", "state"),
		nodePath:     desc("agent_cluster_node_path", "1 for the state of the path to a remote cluster's nodes.", "cluster", "state"),
		rtt:          desc("agent_probe_rtt_seconds", "Time from a probe of a remote cluster to its answer, smoothed, by kind of target.", "cluster", "target"),
		distance:     desc("agent_cluster_rtt_seconds", "Damped round trip time to a remote cluster, by which clusters are ordered.", "cluster"),
		rank:         desc("agent_cluster_rank", "Place of a remote cluster in the order by distance, from 1; those that are equally near share it.", "cluster"),
		age:          desc("agent_cluster_acknowledged_age_seconds", "Time since the stamp of the newest marker of a cluster of which everything is in the eBPF maps.", "cluster"),
		frontends:    desc("datapath_frontends", "Frontends in the eBPF maps."),
		frontendsMax: desc("datapath_frontends_capacity", "Frontends that fit into the eBPF maps."),
		records:      desc("datapath_records", "Slab records of the eBPF maps in use, including those that wait for a grace period."),
		recsMax:      desc("datapath_records_capacity", "Slab records that the eBPF maps have."),
		lookups:      desc("datapath_lookups_total", "Connects and datagrams seen by the programs, by what became of them.", "result"),
		retries:      desc("datapath_retries_total", "Draws of a backend that had to be repeated."),
		hits:         desc("datapath_cluster_hits_total", "Connects and datagrams sent from this node's cluster to a backend of a cluster.", "cluster", "from"),
		reasons:      desc("datapath_reasons_total", "Choices of backends that went another way than drawing one, by reason.", "reason"),
		ended:        desc("agent_connections_ended_total", "Connections to withdrawn backends that were ended, by protocol.", "protocol"),
		unreached:    desc("agent_connections_unreached_total", "Searches in vain for a connection to a withdrawn backend that was to be ended."),
		sweeping:     desc("agent_connections_followed", "1 while clustermesh-agent sockets, which ends connections, runs on this node."),
		forgotten:    desc("datapath_forgotten_total", "Translated sockets that could not be remembered and see the backend's address."),
	}
}

// Describe sends nothing: the collector is unchecked, since clusters come and go.
func (m *collector) Describe(chan<- *prometheus.Desc) {}

// Collect asks the core for its status and sends it as metrics. A core that
// does not answer yields no metrics, which Prometheus shows as absence.
func (m *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var s *api.StatusResponse
	var failed, problems int
	var putOff map[string]time.Duration
	if err := m.core.do(ctx, func(c *core) {
		s, failed, problems = c.status(), len(c.failed), len(c.problems)+len(c.peerProblems)
		putOff = c.putOff()
	}); err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.build, 1, "agent", s.GetVersion(), m.core.cfg.Revision, runtime.Version())
	gauge(m.ready, boolValue(s.GetReady()))
	gauge(m.problems, float64(problems))
	gauge(m.failed, float64(failed))
	for _, c := range s.GetClusters() {
		m.collectCluster(out, c, putOff)
	}
	d := s.GetDatapath()
	gauge(m.frontends, float64(d.GetFrontends()))
	gauge(m.frontendsMax, float64(d.GetFrontendsCapacity()))
	gauge(m.records, float64(d.GetRecords()))
	gauge(m.recsMax, float64(d.GetRecordsCapacity()))
	m.collectCounters(out)
	m.collectSweeps(out)
	m.collectHits(out, s)
}

// clusterHits is a kernel that tells hits of clusters apart.
type clusterHits interface {
	ClusterHits() (map[uint16]uint64, error)
}

func (m *collector) collectHits(out chan<- prometheus.Metric, s *api.StatusResponse) {
	kernel, ok := m.core.kernel.(clusterHits)
	if !ok {
		return
	}
	hits, err := kernel.ClusterHits()
	if err != nil {
		return
	}
	for _, c := range s.GetClusters() {
		if id := c.GetId(); id != 0 {
			out <- prometheus.MustNewConstMetric(m.hits, prometheus.CounterValue, float64(hits[uint16(id)]), c.GetName(), s.GetCluster())
		}
	}
}

func (m *collector) collectCluster(out chan<- prometheus.Metric, c *api.Cluster, putOff map[string]time.Duration) {
	name := c.GetName()
	out <- prometheus.MustNewConstMetric(m.state, prometheus.GaugeValue, 1, name, c.GetState())
	out <- prometheus.MustNewConstMetric(m.services, prometheus.GaugeValue, float64(c.GetServices()), name)
	out <- prometheus.MustNewConstMetric(m.backends, prometheus.GaugeValue, float64(c.GetBackends()), name)
	out <- prometheus.MustNewConstMetric(m.failures, prometheus.CounterValue, float64(c.GetFailures()), name)
	out <- prometheus.MustNewConstMetric(m.putOff, prometheus.CounterValue, putOff[name].Seconds(), name)
	out <- prometheus.MustNewConstMetric(m.held, prometheus.GaugeValue, float64(c.GetHeld()), name)
	out <- prometheus.MustNewConstMetric(m.provisional, prometheus.GaugeValue, float64(c.GetProvisionalBackends()), name)
	if path := c.GetDataPath(); path != "" {
		out <- prometheus.MustNewConstMetric(m.alive, prometheus.GaugeValue, boolValue(!c.GetDead()), name)
		out <- prometheus.MustNewConstMetric(m.dataPath, prometheus.GaugeValue, 1, name, path)
	}
	m.collectDistance(out, c)
	if c.GetAcknowledged() != "" {
		out <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, c.GetAgeSeconds(), name)
	}
	counts := map[string]uint64{}
	for _, r := range c.GetRejections() {
		counts[r.GetReason()] = r.GetCount()
	}
	for _, r := range mesh.Reasons() { // from 0 on, so that the first one is an increase
		out <- prometheus.MustNewConstMetric(m.rejections, prometheus.CounterValue, float64(counts[r.String()]), name, r.String())
	}
}

func (m *collector) collectDistance(out chan<- prometheus.Metric, c *api.Cluster) {
	name := c.GetName()
	if path := c.GetNodePath(); path != "" {
		out <- prometheus.MustNewConstMetric(m.nodePath, prometheus.GaugeValue, 1, name, path)
	}
	for k, rtt := range map[kind]float64{backend: c.GetRttSeconds(), node: c.GetNodeRttSeconds()} {
		if rtt > 0 {
			out <- prometheus.MustNewConstMetric(m.rtt, prometheus.GaugeValue, rtt, name, k.String())
		}
	}
	if rank := c.GetRank(); rank > 0 {
		out <- prometheus.MustNewConstMetric(m.distance, prometheus.GaugeValue, c.GetDistanceSeconds(), name)
		out <- prometheus.MustNewConstMetric(m.rank, prometheus.GaugeValue, float64(rank), name)
	}
}

func (m *collector) collectCounters(out chan<- prometheus.Metric) {
	n, err := m.core.kernel.Counters()
	if err != nil {
		return
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	counter(m.lookups, n.Hits, "translated")
	counter(m.lookups, n.Misses, "untouched")
	counter(m.lookups, n.Refused, "refused")
	counter(m.retries, n.Retries)
	counter(m.forgotten, n.Forgotten)
	for reason, v := range map[string]uint64{
		"empty": n.Empty, "swept": n.Swept, "remembered": n.Remembered, "moved": n.Moved, "expired": n.Expired,
		"unremembered": n.Unremembered, "unreported": n.Unreported,
	} {
		counter(m.reasons, v, reason)
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
