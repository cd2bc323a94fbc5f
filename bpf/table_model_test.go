package bpf

import (
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// What follows is the table's own idea of who answers whom, written down from the
// documents and not from the programs' sources: states first, then the clusters
// that are withdrawn, then draws.

const (
	modelDraws  = 5
	modelSweeps = 64
)

// situation is what is known of the four backends of a case, which are of the
// clusters 1 to 4.
type situation struct {
	name      string
	states    []lb.State
	withdrawn [5]bool // by cluster
}

func situations() []situation {
	const on, going, off, bad, out = lb.Active, lb.Terminating, lb.NotReady, lb.Quarantined, lb.Maintenance
	withdrawn := func(ids ...int) (list [5]bool) {
		for _, id := range ids {
			list[id] = true
		}
		return list
	}
	return []situation{
		{name: "active", states: []lb.State{on, on, on, on}},
		{name: "one active", states: []lb.State{off, bad, on, out}},
		{name: "some terminating", states: []lb.State{going, on, going, on}},
		{name: "all terminating", states: []lb.State{going, going, off, going}},
		{name: "quarantined alone", states: []lb.State{bad, off, out, bad}},
		{name: "cluster withdrawn", states: []lb.State{on, on, on, on}, withdrawn: withdrawn(2)},
		{name: "three clusters withdrawn", states: []lb.State{on, on, on, on}, withdrawn: withdrawn(1, 3, 4)},
		{name: "all clusters withdrawn", states: []lb.State{on, on, going, going}, withdrawn: withdrawn(1, 2)},
		{name: "all deselected", states: []lb.State{off, out, off, out}},
		{name: "none"},
	}
}

// selected are the indices of the backends that new connections may use: those in
// the best of the states that can be used.
func (s *situation) selected() (list []int) {
	for _, state := range []lb.State{lb.Active, lb.Terminating, lb.Quarantined} {
		for i, is := range s.states {
			if is == state {
				list = append(list, i)
			}
		}
		if len(list) > 0 {
			return list
		}
	}
	return nil
}

func (s *situation) usable(backend int) bool { return !s.withdrawn[backend+1] }

// shares are the parts of new connections that each backend gets, all 0 if they
// are refused: draws by weight until one can be used, and then the next one that can.
func (s *situation) shares(weights []float64) (shares [4]float64) {
	list := s.selected()
	var all, lost float64
	for _, b := range list {
		all += weights[b]
		if !s.usable(b) {
			lost += weights[b]
		}
	}
	miss := lost / all
	for i, b := range list {
		if s.usable(b) {
			for n := range modelDraws {
				shares[b] += weights[b] / all * math.Pow(miss, float64(n))
			}
		}
		if next := s.next(list, i); next >= 0 {
			shares[next] += math.Pow(miss, modelDraws) / float64(len(list))
		}
	}
	return shares
}

// next is the first backend from place i of the list on that can be used.
func (s *situation) next(list []int, i int) int {
	for n := range list {
		if b := list[(i+n)%len(list)]; s.usable(b) {
			return b
		}
	}
	return -1
}

// consistent is the backend that a client has by the table of the set, -1 if
// connections are refused.
func (s *situation) consistent(seed uint64, addrs []netip.AddrPort) int {
	list := s.selected()
	if len(list) == 0 {
		return -1
	}
	own := make([]netip.AddrPort, len(list))
	for i, b := range list {
		own[i] = addrs[b]
	}
	table := lb.Maglev(own, nil, lb.MaglevSize(len(own)))
	for range modelDraws {
		seed = seed*6364136223846793005 + 1442695040888963407
		if b := list[table[(seed>>32)*uint64(len(table))>>32]]; s.usable(b) {
			return b
		}
	}
	draw := uint32(seed >> 32)
	for range modelSweeps {
		draw += (1 << 32) / modelSweeps
		if b := list[uint64(draw)*uint64(len(list))>>32]; s.usable(b) {
			return b
		}
	}
	return -1
}

// modelSeed is the seed of a client that is known by two words (SplitMix64).
func modelSeed(first, second uint64) uint64 {
	mix := func(x uint64) uint64 {
		x += 0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}
	return mix(mix(first) ^ second)
}

func addressSeed(addr string) uint64 {
	a := netip.MustParseAddr(addr).As16()
	return modelSeed(binary.NativeEndian.Uint64(a[:8]), binary.NativeEndian.Uint64(a[8:]))
}

// mapped is an address as a socket of IPv6 shows it.
func mapped(addr string) string {
	a := netip.MustParseAddrPort(addr)
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()).String()
}
