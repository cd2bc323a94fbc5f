package lb

// Policy is how a service wants its traffic spread over the clusters. It comes
// from annotations of the local service, see [ParsePolicy], and is never
// changed once it was parsed. The zero Policy leaves everything to the
// service's affinity.
type Policy struct {
	// Tiers are groups of clusters in order of preference. A cluster that no
	// tier names is not used at all. See also [Nearest]. Without tiers the affinity stands for
	// them: none is "*", local is "local; *", remote is "*; local".
	Tiers [][]string
	// Weights divide a tier's traffic among its clusters. A cluster that they
	// do not name has weight 0: it is used if no other cluster is left. Without
	// weights each backend of a tier has the same share.
	Weights []ClusterWeight
	// Spillover says when a tier needs help of the next one.
	Spillover Spillover
	// Staleness says what becomes of clusters that are out of contact.
	Staleness Staleness
	// Consistent asks for [Maglev].
	Consistent bool
	// OnWithdraw says what becomes of connections to withdrawn backends, Drain
	// after how many seconds draining ones are ended; 0 unless they drain.
	OnWithdraw OnWithdraw
	Drain      uint32
}

// Names that stand for clusters in a [Policy]. A cluster's own name wins over
// Local, and that over Others.
const (
	Local  = "local" // the agent's own cluster
	Others = "*"     // every cluster that is not named
)

// ClusterWeight is a cluster's share of its tier's traffic relative to the
// other clusters there that have a backend to offer; its backends share it
// evenly. Others gives each cluster it stands for the weight.
type ClusterWeight struct {
	Cluster string
	Weight  uint32 // at most 10,000
}

// Spillover lets a tier carry all traffic as long as its healthy backends are
// at least Backends, or Percent of those known; one of both is set. With fewer
// the share of the next tier grows evenly: it is 1 when none is left. The last
// tier with healthy backends always takes what remains.
//
// Known are all backends said to exist in any state. Clusters that export
// services and not endpoint slices never say which of theirs are not ready, so
// that Percent means little for them and Backends is the better choice.
type Spillover struct {
	Backends   uint32
	Percent    uint32
	Hysteresis uint32 // percent of the threshold by which it is higher on the way back
	// Ramp is how many seconds a tier takes at least from carrying all of its
	// traffic to carrying none, or back, while it has healthy backends: the share
	// of the next one grows and shrinks by small steps, whatever health does
	// meanwhile. With 0 shares follow health at once.
	Ramp uint32
}

// IsZero reports whether tiers never help each other.
func (s Spillover) IsZero() bool { return s.Backends == 0 && s.Percent == 0 }

// Staleness says after how many seconds without contact a remote cluster's
// backends move behind those of all tiers, and after how many they are given
// up; 0 is never. Even then they are used rather than none. The local cluster
// does not become stale.
type Staleness struct {
	DemoteAfter   uint32
	WithdrawAfter uint32
}

// Next returns how many seconds of lost contact are the next to change
// anything after lost seconds have passed, or 0 if nothing does any more.
func (s Staleness) Next(lost uint32) uint32 {
	switch {
	case s.DemoteAfter > lost && (s.WithdrawAfter <= lost || s.DemoteAfter < s.WithdrawAfter):
		return s.DemoteAfter
	case s.WithdrawAfter > lost:
		return s.WithdrawAfter
	}
	return 0
}

// Distribution is a preference for near backends within the clusters that the
// policy selects. It always falls back to farther ones.
type Distribution uint8

// The values of a Service's trafficDistribution.
const (
	DistributionNone Distribution = iota
	PreferSameZone                // also called PreferClose
	PreferSameNode                // then the same zone
)

// ParseDistribution maps the name that Kubernetes uses; unknown ones are no
// preference, as Kubernetes demands.
func ParseDistribution(name string) Distribution {
	switch name {
	case "PreferClose", "PreferSameZone":
		return PreferSameZone
	case "PreferSameNode":
		return PreferSameNode
	}
	return DistributionNone
}

// level is a cluster's place in the order of preference, excluded if it has
// none. Behind the tiers come stale clusters, then those of weight 0.
func (m *merger) level(s *site) int {
	tier := m.tier(s)
	switch {
	case tier == excluded:
		return excluded
	case s.weight == 0:
		return m.tiers() + 1
	case s.demoted:
		return m.tiers()
	}
	return tier
}

const excluded = -1

func (m *merger) tiers() int {
	switch n := len(m.s.Policy.Tiers); {
	case m.nearest >= 0:
		return maxTiers
	case n > 0:
		return min(n, maxTiers)
	}
	return 2
}

func (m *merger) tier(s *site) int {
	p := &m.s.Policy
	switch {
	case len(p.Tiers) > 0:
		return m.expand(s, s.find(p.Tiers))
	case m.s.Affinity == AffinityRemote && s.local, m.localFirst() && !s.local:
		return 1
	}
	return 0
}

// localFirst holds without an affinity too if spillover is wanted, which would
// have no meaning otherwise.
func (m *merger) localFirst() bool {
	return m.s.Affinity == AffinityLocal || m.s.Affinity != AffinityRemote && !m.s.Policy.Spillover.IsZero()
}

// find returns the tier that names the site best.
func (s *site) find(tiers [][]string) int {
	best, tier := 0, excluded
	for i, names := range tiers {
		for _, name := range names {
			if fit := s.fits(name); fit > best {
				best, tier = fit, min(i, maxTiers-1)
			}
		}
	}
	return tier
}

// fits says how exactly a name of a policy means the site, 0 for not at all.
func (s *site) fits(name string) int {
	switch {
	case name == Local:
		if s.local {
			return 2
		}
	case name == Nearest:
		if !s.local {
			return 2
		}
	case name == s.cluster:
		return 3
	case name == Others:
		return 1
	}
	return 0
}

func (s *site) weightIn(weights []ClusterWeight) uint32 {
	if len(weights) == 0 {
		return 1
	}
	best, weight := 0, uint32(0)
	for _, w := range weights {
		if fit := s.fits(w.Cluster); fit > best {
			best, weight = fit, w.Weight
		}
	}
	return weight
}
