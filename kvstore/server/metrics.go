package server

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// refusal is why a reader did not get what it asked for.
type refusal string

const (
	refusedConnections   refusal = "connections"
	refusedPermission    refusal = "permission"
	refusedUnsupported   refusal = "unsupported"
	refusedUnimplemented refusal = "unimplemented"
	refusedWatches       refusal = "watches"
	refusedCreates       refusal = "creates"
	refusedCompacted     refusal = "compacted"
	refusedUnread        refusal = "unread"
	refusedIncomplete    refusal = "incomplete"
	refusedSize          refusal = "size"
	refusedConnects      refusal = "connects"
	refusedStreams       refusal = "streams"
	refusedRequests      refusal = "requests"
	refusedProcessor     refusal = "processor"
	refusedRemoved       refusal = "removed"
	refusedExpired       refusal = "expired"
	refusedRevoked       refusal = refusal(failedRevoked)
	refusedAuthority     refusal = refusal(failedAuthority)
)

func refusals() []refusal {
	return []refusal{
		refusedConnections, refusedPermission, refusedUnsupported, refusedUnimplemented,
		refusedWatches, refusedCreates, refusedCompacted, refusedUnread, refusedIncomplete, refusedSize,
		refusedConnects, refusedStreams, refusedRequests, refusedProcessor, refusedRemoved, refusedExpired, refusedRevoked, refusedAuthority,
	}
}

// metrics are the gateway's counters. Gauges that are read from the running
// store are made in register.
type metrics struct {
	handshakeFailures *prometheus.CounterVec
	refusals          *prometheus.CounterVec
	peerRefusals      *prometheus.CounterVec
	requests          *prometheus.CounterVec
	connections       prometheus.Gauge
	watches           prometheus.Gauge
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "clustermesh_gateway_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "clustermesh_gateway_" + name, Help: help})
	}
	m := &metrics{
		handshakeFailures: counter("handshake_failures_total", "Connections that failed in the TLS handshake, by reason.", "reason"),
		refusals:          counter("refusals_total", "Requests and connections refused or ended by the gateway, by reason.", "reason"),
		peerRefusals:      counter("peer_refusals_total", "Requests, connections and handshakes refused or ended by the gateway, by configured peer and reason.", "peer", "reason"),
		requests:          counter("requests_total", "Requests answered, by kind.", "kind"),
		connections:       gauge("connections", "Open connections, those in their handshake included."),
		watches:           gauge("watches", "Watches of all connections."),
	}
	for _, r := range handshakeReasons() {
		m.handshakeFailures.WithLabelValues(string(r))
		m.peerRefusals.WithLabelValues(labelOther, string(r))
	}
	// Those that are there before the first event, so that this counts as an
	// increase. Peers come and go; theirs are made with the first event.
	for _, r := range refusals() {
		m.refusals.WithLabelValues(string(r))
		m.peerRefusals.WithLabelValues(labelLocal, string(r))
		m.peerRefusals.WithLabelValues(labelOther, string(r))
	}
	for _, kind := range []string{kindRange, kindStatus, kindWatch} {
		m.requests.WithLabelValues(kind)
	}
	return m
}

func (m *metrics) refuse(a *account, why refusal) {
	m.refusals.WithLabelValues(string(why)).Inc()
	m.peerRefusals.WithLabelValues(a.name(), string(why)).Inc()
}

func (m *metrics) failHandshake(a *account, why handshakeReason) {
	m.handshakeFailures.WithLabelValues(string(why)).Inc()
	m.peerRefusals.WithLabelValues(a.name(), string(why)).Inc()
}

// forget drops the figures of a peer that is configured no more.
func (m *metrics) forget(peer string) {
	m.peerRefusals.DeletePartialMatch(prometheus.Labels{"peer": peer})
}

// register adds all metrics to reg, which may be nil, and returns how to remove
// them again, so that a later life can register its own.
func (m *metrics) register(reg prometheus.Registerer, s *Server) (unregister func(), err error) {
	if reg == nil {
		return func() {}, nil
	}
	var done []prometheus.Collector
	unregister = func() {
		for _, c := range done {
			reg.Unregister(c)
		}
	}
	all := append(storeGauges(s), m.handshakeFailures, m.refusals, m.peerRefusals, m.requests, m.connections, m.watches, newPeerCollector(s))
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			unregister()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
		done = append(done, c)
	}
	return unregister, nil
}

// watchLag is 0 while there is no life.
func (s *Server) watchLag() float64 {
	l, err := s.enter()
	if err != nil {
		return 0
	}
	defer l.leave()
	_, _, head := l.ring.stats()
	return float64(s.gateway.streams.lag(head))
}

// storeGauges read the running life whenever they are collected. None asks etcd
// for what it answers under a lock: while the disk completes no write that lock is
// held, and the page is to say so.
func storeGauges(s *Server) []prometheus.Collector {
	gauge := func(name, help string, read func(*life) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "clustermesh_store_" + name, Help: help}, func() float64 {
			l, err := s.enter()
			if err != nil {
				return 0
			}
			defer l.leave()
			return read(l)
		})
	}
	return []prometheus.Collector{
		gauge("revision", "Revision of the embedded store.", func(l *life) float64 {
			_, _, head := l.ring.stats()
			return float64(head)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "clustermesh_gateway_watch_lag_revisions", Help: "Revisions of the store that the slowest watch has not been sent yet.",
		}, func() float64 { return s.watchLag() }),
		gauge("size_bytes", "Size of the embedded store's database file.", func(l *life) float64 { return float64(l.etcd.Backend().Size()) }),
		gauge("quota_bytes", "Size at which the embedded store gives up.", func(*life) float64 { return float64(s.cfg.QuotaBytes) }),
		gauge("ring_bytes", "Memory of the history that watches are served from.", func(l *life) float64 {
			_, bytes, _ := l.ring.stats()
			return float64(bytes)
		}),
		gauge("ring_revisions", "Revisions in the history that watches are served from.", func(l *life) float64 {
			revs, _, _ := l.ring.stats()
			return float64(revs)
		}),
	}
}
