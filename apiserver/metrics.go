package apiserver

import (
	"runtime"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/prometheus/client_golang/prometheus"
)

// descriptions are the apiserver's metrics. Dashboards depend on the names;
// labels have few values and never name a service, address, key or pod.
type descriptions struct {
	ready, buildInfo, lives                *prometheus.Desc
	pending, operations, publishErrors     *prometheus.Desc
	objects, sourceErrors, sourceProblems  *prometheus.Desc
	records, exportProblems                *prometheus.Desc
	identities, identityLimit, journalFail *prometheus.Desc
	identitySource                         *prometheus.Desc
	lag, bootstrap                         *prometheus.Desc
}

func newDescriptions() descriptions {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("clustermesh_"+name, help, labels, nil)
	}
	return descriptions{
		ready:          d("ready", "1 once everything is published in the present life of the store, else 0."),
		buildInfo:      d("build_info", "Always 1; what runs.", "component", "version", "revision", "go_version"),
		lives:          d("store_lives_total", "Lives of the store that were begun; more than 1 means that it failed and was rebuilt."),
		pending:        d("publisher_pending", "Keys whose last change the store has not acknowledged.", "kind"),
		operations:     d("publisher_operations_total", "Operations that the store acknowledged.", "kind", "op"),
		publishErrors:  d("publisher_errors_total", "Failed attempts to write to the store.", "kind"),
		objects:        d("source_objects", "Objects that the source has delivered.", "kind"),
		sourceErrors:   d("source_errors_total", "Problems that the source has run into."),
		sourceProblems: d("source_problems", "Problems that the source has now."),
		records:        d("export_records", "Records that are exported.", "kind"),
		exportProblems: d("export_problems", "Objects, or parts of them, that are not exported although they should be.", "reason"),
		identities:     d("identities", "Numbers of identities, by whether they are in use or in quarantine.", "state"),
		identityLimit:  d("identities_limit", "Numbers in the cluster's range."),
		journalFail:    d("identity_journal_errors_total", "Failed attempts to keep identities on disk."),
		lag:            d("publisher_lag_seconds", "How long the oldest change that the store has not acknowledged has waited, 0 for none.", "kind"),
		bootstrap:      d("bootstrap_duration_seconds", "Time until everything was published for the first time, 0 before."),
		identitySource: d("identity_source", "Always 1; where identities, pod addresses and nodes come from.", "source"),
	}
}

// Describe sends all descriptions.
func (s *status) Describe(out chan<- *prometheus.Desc) {
	d := s.metrics
	for _, one := range []*prometheus.Desc{
		d.ready, d.buildInfo, d.lives, d.pending, d.operations, d.publishErrors, d.objects, d.sourceErrors,
		d.sourceProblems, d.records, d.exportProblems, d.identities, d.identityLimit, d.journalFail, d.identitySource, d.lag, d.bootstrap,
	} {
		out <- one
	}
}

// Collect sends the present values.
func (s *status) Collect(out chan<- prometheus.Metric) {
	ready := 0
	if len(s.missing()) == 0 {
		ready = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.metrics
	gauge(out, d.ready, ready)
	gauge(out, d.buildInfo, 1, "apiserver", s.version, s.revision, runtime.Version())
	gauge(out, d.bootstrap, s.bootstrap.Seconds())
	counter(out, d.lives, s.lives)
	counter(out, d.sourceErrors, s.sourceErrors)
	counter(out, d.journalFail, s.journalErrors)
	gauge(out, d.sourceProblems, len(s.sourceProblems))
	s.collectPublishers(out)
	s.collectExport(out)
}

func (s *status) collectPublishers(out chan<- prometheus.Metric) {
	for _, k := range s.kinds {
		stats, pending, lag := s.past[k], 0, 0.0
		if s.life != nil {
			p := s.life.publishers[k]
			stats, pending, lag = add(stats, p.Stats()), p.Pending(), p.Lag(time.Now()).Seconds()
		}
		gauge(out, s.metrics.lag, lag, k.String())
		s.collectPublisher(out, k.String(), stats, pending)
	}
}

func (s *status) collectPublisher(out chan<- prometheus.Metric, kind string, stats kvstore.PublisherStats, pending int) {
	gauge(out, s.metrics.pending, pending, kind)
	counter(out, s.metrics.operations, stats.Puts, kind, "put")
	counter(out, s.metrics.operations, stats.Deletes, kind, "delete")
	counter(out, s.metrics.publishErrors, stats.Errors, kind)
}

func (s *status) collectExport(out chan<- prometheus.Metric) {
	for _, kind := range []string{"ciliumendpoints", "ciliumidentities", "ciliumnodes", "endpointslices", "namespaces", "nodes", "pods", "serviceexports", "services"} {
		gauge(out, s.metrics.objects, s.objects[kind], kind)
	}
	for _, k := range s.kinds {
		gauge(out, s.metrics.records, s.records[k], k.String())
	}
	for _, r := range export.Reasons() {
		gauge(out, s.metrics.exportProblems, s.problemReasons[r], string(r))
	}
	gauge(out, s.metrics.identities, s.identities.Used, "used")
	gauge(out, s.metrics.identities, s.identities.Resting, "quarantine")
	gauge(out, s.metrics.identityLimit, s.identities.Capacity)
	if s.source != "" {
		gauge(out, s.metrics.identitySource, 1, s.source)
	}
}

func gauge[N int | uint64 | float64](out chan<- prometheus.Metric, d *prometheus.Desc, value N, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
}

func counter[N int | uint64](out chan<- prometheus.Metric, d *prometheus.Desc, value N, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}
