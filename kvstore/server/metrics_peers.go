package server

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// streams knows the watch calls that are open, to tell how far behind they are.
type streams struct {
	mu   sync.Mutex
	open map[*watchStream]struct{}
}

func newStreams() *streams { return &streams{open: map[*watchStream]struct{}{}} }

func (s *streams) add(ws *watchStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[ws] = struct{}{}
}

func (s *streams) remove(ws *watchStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, ws)
}

// lag returns how many revisions up to head the slowest call has not been sent.
func (s *streams) lag(head int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := int64(0)
	for ws := range s.open {
		if next := ws.next.Load(); next > 0 {
			most = max(most, head-next+1)
		}
	}
	return most
}

// all returns every account that has a label of its own.
func (r *registry) all() []*account {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []*account{r.local, r.other}
	for _, a := range r.accounts {
		all = append(all, a)
	}
	return all
}

// RemoteReaders counts the established connections of everybody but the own
// cluster's agents.
func (s *Server) RemoteReaders() int {
	n := 0
	for _, a := range s.gateway.conns.registry.all() {
		if a.label != labelLocal {
			n += int(a.conns.Load())
		}
	}
	return n
}

// peerCollector shows what each peer has open.
type peerCollector struct {
	server               *Server
	connections, watches *prometheus.Desc
}

func newPeerCollector(s *Server) *peerCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("clustermesh_gateway_"+name, help, []string{"peer"}, nil)
	}
	return &peerCollector{
		server:      s,
		connections: desc("peer_connections", "Established connections, by configured peer; local are the cluster's own agents, other all readers without a file of their own."),
		watches:     desc("peer_watches", "Watches, by configured peer; local are the cluster's own agents, other all readers without a file of their own."),
	}
}

// Describe sends all descriptions: what does not cannot be unregistered.
func (p *peerCollector) Describe(out chan<- *prometheus.Desc) {
	out <- p.connections
	out <- p.watches
}

// Collect sends the present values.
func (p *peerCollector) Collect(out chan<- prometheus.Metric) {
	for _, a := range p.server.gateway.conns.registry.all() {
		out <- prometheus.MustNewConstMetric(p.connections, prometheus.GaugeValue, float64(a.conns.Load()), a.label)
		out <- prometheus.MustNewConstMetric(p.watches, prometheus.GaugeValue, float64(a.watches.Load()), a.label)
	}
}
