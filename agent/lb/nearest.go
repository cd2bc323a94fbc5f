package lb

import "slices"

// Nearest in [Policy].Tiers stands for several tiers: the remote clusters that
// no tier names, those of the lowest rank first ([Service].Ranks) and those
// without a rank last. It is alone in its tier. It takes as many of the tiers
// that there can be as are left; the clusters that are farther share the last.
const Nearest = "nearest"

// Nearest reports whether a tier asks for the nearest clusters.
func (p *Policy) Nearest() bool { return p.nearest() >= 0 }

// nearest is the tier that asks for the nearest clusters, or -1.
func (p *Policy) nearest() int {
	return slices.IndexFunc(p.Tiers, func(names []string) bool { return slices.Contains(names, Nearest) })
}

// IsNearest reports whether it is [Nearest] that names a remote cluster.
func (s *Service) IsNearest(cluster string) bool {
	return s.Policy.Nearest() && (&site{cluster: cluster}).find(s.Policy.Tiers) == s.Policy.nearest()
}

// depth is how many levels [Nearest] takes: always the same ones, however many
// clusters there are, so that what is remembered of a level holds.
func (m *merger) depth() int { return maxTiers + 1 - min(len(m.s.Policy.Tiers), maxTiers) }

// vacant reports whether nothing is known of a level that [Nearest] took without
// knowing whether it would be needed.
func (m *merger) vacant(l int, live *levels) bool {
	return m.nearest >= 0 && l >= m.nearest && l < m.nearest+m.depth() && live[l].known == 0
}

// expand turns the tier that names a site into a level.
func (m *merger) expand(s *site, tier int) int {
	switch {
	case tier == excluded || m.nearest < 0 || tier < m.nearest:
		return tier
	case tier > m.nearest:
		return tier + m.depth() - 1
	}
	if rank, known := m.s.Ranks[s.cluster]; known { // the last level is for the others
		return m.nearest + min(int(rank), max(m.depth()-2, 0))
	}
	return m.nearest + m.depth() - 1
}

// shown is a level as people count: as if [Nearest] took a tier for each rank
// there is and one for clusters without.
func (m *merger) shown(level int) int {
	if m.nearest < 0 || level < m.nearest+m.depth()-1 {
		return level
	}
	ranks := 1
	for _, rank := range m.s.Ranks {
		ranks = max(ranks, int(rank)+2)
	}
	return level - max(m.depth()-ranks, 0)
}
