package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
)

// sampler reads one frontend's selected backends on a node's maps again and
// again, and remembers every set that it sees.
type sampler struct {
	node     *node
	frontend oracle.Frontend
	stop     chan struct{}
	done     chan struct{}

	mu      sync.Mutex
	samples int
	seen    map[string]int // sets, as sorted text
}

// watchSets starts a sampler on every node for the TCP frontend of the own
// cluster's first address.
func (w *world) watchSets(t *testing.T, ips map[*cluster][]netip.Addr) []*sampler {
	t.Helper()
	var all []*sampler
	for _, n := range w.nodes() {
		s := &sampler{
			node: n, frontend: oracle.Frontend{Addr: netip.AddrPortFrom(ips[n.cluster][0], 80), Protocol: "TCP"},
			stop: make(chan struct{}), done: make(chan struct{}), seen: map[string]int{},
		}
		go s.run()
		all = append(all, s)
	}
	return all
}

func (s *sampler) run() {
	defer close(s.done)
	buffer := make([]netip.AddrPort, 0, 64)
	for {
		set := s.read(buffer)
		s.mu.Lock()
		s.samples++
		s.seen[set]++
		s.mu.Unlock()
		select {
		case <-s.stop:
			return
		case <-time.After(200 * time.Microsecond):
		}
	}
}

func (s *sampler) read(buffer []netip.AddrPort) string {
	id, err := s.node.maps.Lookup(s.frontend)
	if err != nil {
		return err.Error()
	}
	set := s.node.maps.Backends(id, buffer)
	slices.SortFunc(set, netip.AddrPort.Compare)
	return fmt.Sprint(set)
}

// end stops the sampler and returns the sets it saw.
func (s *sampler) end() map[string]int {
	close(s.stop)
	<-s.done
	return s.seen
}

// requireConstant ends the samplers and demands that each saw one set only.
func requireConstant(t *testing.T, samplers []*sampler) {
	t.Helper()
	for _, s := range samplers {
		if seen := s.end(); len(seen) != 1 {
			t.Errorf("the maps of %s held %d different sets for %s: %v", s.node.name, len(seen), s.frontend.Addr, seen)
		}
	}
}

// requireUntouched runs a step and demands that afterwards no live entry of any
// node's maps was written anew: the same headers in the same places.
func (w *world) requireUntouched(t *testing.T, step func()) {
	t.Helper()
	before := w.headers(t)
	step()
	after := w.headers(t)
	for node, headers := range before {
		if headers != after[node] {
			t.Errorf("entries of %s were touched:\nbefore %s\nafter  %s", node, headers, after[node])
		}
	}
}

func (w *world) headers(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, n := range w.nodes() {
		headers, err := n.maps.Headers()
		must(t, err)
		all[n.name] = headers
	}
	return all
}
