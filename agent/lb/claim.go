package lb

import (
	"cmp"
	"slices"
)

// A remote cluster can name any address that nobody told us is another's. So what
// it says of one must not take it from a cluster whose word is better: else it
// would empty that one's services by saying that their backends are not ready.

// What is of no use has the least worth: it claims an address only from its like.
const (
	worthNotReady = 254
	worthExcluded = 255
)

// worth orders claims to one address as a decision would prefer them, the best
// first. Our own cluster's come before all others: of what runs here it knows
// best, and what it says is not ready stays so.
func (m *merger) worth(i int32) int {
	b := &m.pool[i]
	if b.Local {
		return 0
	}
	s := m.siteOf(int(i))
	class := 0
	switch {
	case s.level == excluded:
		return worthExcluded
	case b.State == NotReady || b.State == Maintenance:
		return worthNotReady
	case b.State == Quarantined:
		class = 4
	case s.lost && b.State == Terminating:
		class = 3
	case s.lost:
		class = 2
	case b.State == Terminating:
		class = 1
	}
	return 1 + class*len(levels{}) + s.level
}

// siteOf finds the site of a backend of the pool.
func (m *merger) siteOf(i int) *site {
	n, _ := slices.BinarySearchFunc(m.sites, i, func(s site, i int) int {
		if s.end <= i {
			return -1
		}
		return 1
	})
	return &m.sites[n]
}

// claimants returns for each backend of the pool the index of the next better
// claim to the same address, port and protocol, or -1.
func (m *merger) claimants() []int32 {
	pool := m.pool
	order := make([]int32, 2*len(pool))
	better := order[len(pool):]
	order = order[:len(pool)]
	for i := range order {
		order[i], better[i] = int32(i), -1
	}
	slices.SortFunc(order, func(i, j int32) int {
		a, b := &pool[i], &pool[j]
		if c := cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol)); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(m.worth(i), m.worth(j)), cmp.Compare(i, j))
	})
	for k := 1; k < len(order); k++ {
		a, b := &pool[order[k-1]], &pool[order[k]]
		if a.Addr == b.Addr && a.Protocol == b.Protocol {
			better[order[k]] = order[k-1]
		}
	}
	return better
}

// claimed reports whether another backend that matches the same frontend has a
// better claim to the same address.
func (m *merger) claimed(i int) bool {
	for j := m.claims[i]; j >= 0; j = m.claims[j] {
		if m.fates[j] != byNothing {
			return true
		}
	}
	return false
}
