package apiserver

import (
	"time"

	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/prometheus/client_golang/prometheus"
)

// measures are what happens besides what status shows: how long publishing takes
// and what of it fails.
type measures struct {
	published *prometheus.HistogramVec
	announce  prometheus.Counter
}

func newMeasures(registry prometheus.Registerer, kinds []schema.Kind) *measures {
	m := &measures{
		published: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "clustermesh_publish_duration_seconds",
			Help:    "Time from a change of a record until the store had it, by kind.",
			Buckets: prometheus.ExponentialBuckets(0.5e-3, 4, 9),
		}, []string{"kind"}),
		announce: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "clustermesh_announcement_errors_total",
			Help: "Failed attempts to write the cluster's announcement or heartbeat to the store.",
		}),
	}
	for _, k := range kinds {
		m.published.WithLabelValues(k.String())
	}
	registry.MustRegister(m.published, m.announce)
	return m
}

// acknowledged observes the publishing of one kind.
func (m *measures) acknowledged(k schema.Kind) func(time.Duration) {
	h := m.published.WithLabelValues(k.String())
	return func(d time.Duration) { h.Observe(d.Seconds()) }
}

// peerGauges show what became of the directory of peers.
func peerGauges(d *peers.Directory) []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "clustermesh_peers", Help: "Peers that are configured and let in.",
		}, func() float64 {
			table, _ := d.Set().Current()
			return float64(len(table.Peers()))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "clustermesh_peer_file_problems", Help: "Files of the directory of peers that are refused; the last good state of each stays.",
		}, func() float64 { return float64(len(d.Problems())) }),
	}
}
