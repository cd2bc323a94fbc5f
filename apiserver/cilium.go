package apiserver

import (
	"fmt"
	"net/http"
	"runtime"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/prometheus/client_golang/prometheus"
)

// What tools expect of Cilium's own clustermesh-apiserver (v1.20), for charts,
// probes and dashboards that are kept while the server behind them changes.

// ciliumHealth answers as the health check of Cilium's apiserver does: /readyz
// says Ready with status 200 or NotReady with 500, and no more.
func (a *apiserver) ciliumHealth() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		code, body := http.StatusOK, "Ready"
		if len(a.status.missing()) > 0 {
			code, body = http.StatusInternalServerError, "NotReady"
		}
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	})
	return mux
}

// ciliumMetrics shows the apiserver's state under the names that Cilium's has,
// as far as they mean something here: there is no client with a rate limit, and
// no quorum to lose.
type ciliumMetrics struct {
	status                                        *status
	cluster                                       string
	bootstrap, version, queue, errors, syncedOnce *prometheus.Desc
}

func newCiliumMetrics(config Config, s *status) *ciliumMetrics {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("cilium_clustermesh_apiserver_"+name, help, labels, nil)
	}
	return &ciliumMetrics{
		status: s, cluster: config.ClusterName,
		bootstrap:  d("bootstrap_seconds", "Seconds until everything was published for the first time, 0 before."),
		version:    d("version", "Always 1; what runs.", "version", "revision", "arch"),
		queue:      d("kvstore_sync_queue_size", "Keys whose last change the store has not acknowledged.", "scope", "source_cluster"),
		errors:     d("kvstore_sync_errors_total", "Failed attempts to write to the store.", "scope", "source_cluster"),
		syncedOnce: d("kvstore_initial_sync_completed", "1 once all entries of a kind are published, else 0.", "scope", "source_cluster", "action"),
	}
}

// Describe sends all descriptions.
func (m *ciliumMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.bootstrap, m.version, m.queue, m.errors, m.syncedOnce} {
		out <- d
	}
}

// Collect sends the present values.
func (m *ciliumMetrics) Collect(out chan<- prometheus.Metric) {
	s := m.status
	s.mu.Lock()
	defer s.mu.Unlock()
	out <- prometheus.MustNewConstMetric(m.bootstrap, prometheus.GaugeValue, s.bootstrap.Seconds())
	gauge(out, m.version, 1, s.version, s.revision, runtime.GOARCH)
	for _, k := range s.kinds {
		if k != schema.KindLocalService {
			m.collectKind(out, k)
		}
	}
}

// collectKind names a kind by the third and fourth part of its keys, as Cilium
// does.
func (m *ciliumMetrics) collectKind(out chan<- prometheus.Metric, k schema.Kind) {
	scope, stats, pending, synced := k.String()+"/v1", m.status.past[k], 0, 0
	if l := m.status.life; l != nil {
		p := l.publishers[k]
		stats, pending = add(stats, p.Stats()), p.Pending()
		if done(p) {
			synced = 1
		}
	}
	gauge(out, m.queue, pending, scope, m.cluster)
	counter(out, m.errors, stats.Errors, scope, m.cluster)
	gauge(out, m.syncedOnce, synced, scope, m.cluster, "write")
}
