package liveness

import (
	"maps"
)

// Order is the order of clusters by distance. Make it with [NewOrder].
type Order struct {
	distances map[string]int64
	ranks     map[string]uint8
	stale     bool // ranks are older than distances
	waited    int  // rounds, since they are
}

// NewOrder returns the order of clusters whose distances are known, in
// nanoseconds by name. The map is not kept.
func NewOrder(distances map[string]int64) *Order {
	o := &Order{distances: map[string]int64{}}
	for name, ns := range distances {
		o.Set(name, ns)
	}
	o.stale, o.ranks = false, Ranks(o.distances)
	return o
}

// Set takes in a cluster's distance; 0 forgets the cluster.
func (o *Order) Set(name string, ns int64) {
	if o.distances[name] == ns {
		return
	}
	o.distances[name] = ns
	if ns == 0 {
		delete(o.distances, name)
	}
	o.stale = true
}

// Round ends a round, in which some distance was moving ([Judge.Moving]) or none
// was, and reports whether distances were taken into the order. Those that
// changed wait for the others that are about to, for at most as long as one takes
// to change: times that all grow together, as they do when the way out of this
// node is longer, must not be compared while half of them have.
func (o *Order) Round(moving bool) (taken bool) {
	if !o.stale {
		return false
	}
	if o.waited++; moving && o.waited < hold {
		return false
	}
	o.stale, o.waited = false, 0
	o.ranks = Ranks(o.distances)
	return true
}

// Ranks are those of [Ranks]; the map must not be changed and never is.
func (o *Order) Ranks() map[string]uint8 { return o.ranks }

// Distance is what was last set, 0 if that is unknown.
func (o *Order) Distance(name string) int64 { return o.distances[name] }

// Distances returns a copy of all known ones.
func (o *Order) Distances() map[string]int64 { return maps.Clone(o.distances) }
