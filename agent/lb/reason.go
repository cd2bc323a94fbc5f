package lb

// Why a backend was selected or not. Every [Choice] carries exactly one.
const (
	// ReasonActive: selected, it is ready and in the tier preferred most.
	ReasonActive = "active"
	// ReasonFallback: selected and ready, but only because the tiers before its
	// own have nothing to offer.
	ReasonFallback = "fallback"
	// ReasonSpillover: selected and ready, it takes what the tiers before its own
	// have too few healthy backends for.
	ReasonSpillover = "spillover"
	// ReasonTerminatingLast: selected although it is going away, because no
	// active backend is left among the candidates.
	ReasonTerminatingLast = "terminating-last"
	// ReasonLastResort: selected because nothing better is left, although its
	// cluster is out of contact or has weight 0, or it is quarantined.
	ReasonLastResort = "last-resort"

	// ReasonTerminating: not selected, it is going away and active ones exist.
	ReasonTerminating = "terminating"
	// ReasonNotReady: not selected, it serves nobody.
	ReasonNotReady = "not-ready"
	// ReasonQuarantined: not selected, it was seen to fail and others exist.
	ReasonQuarantined = "quarantined"
	// ReasonMaintenance: not selected, an operator took it out.
	ReasonMaintenance = "maintenance"
	// ReasonAffinity: not selected, the side that the affinity prefers is healthy.
	ReasonAffinity = "affinity"
	// ReasonTier: not selected, a tier before its own is healthy.
	ReasonTier = "tier"
	// ReasonWeight: not selected, its cluster has weight 0 and others exist.
	ReasonWeight = "weight"
	// ReasonStale: not selected, its cluster has been out of contact for longer
	// than the policy allows and others exist.
	ReasonStale = "stale"
	// ReasonExcluded: not selected, no tier names its cluster.
	ReasonExcluded = "excluded"
	// ReasonFarther: not selected, there are active ones nearer to this node.
	ReasonFarther = "farther"
	// ReasonOtherNode: not selected, the service is for backends on this node only.
	ReasonOtherNode = "other-node"
	// ReasonDuplicate: not selected, a nearer cluster claims the same address,
	// port and protocol.
	ReasonDuplicate = "duplicate"
)

// Selecting reports whether reason is one that a selected backend carries.
func Selecting(reason string) bool {
	switch reason {
	case ReasonActive, ReasonFallback, ReasonSpillover, ReasonTerminatingLast, ReasonLastResort:
		return true
	}
	return false
}

// reason explains what a decision means for one candidate.
func (m *merger) reason(d *decision, s *site, b *Backend) string {
	switch {
	case b.State == NotReady:
		return ReasonNotReady
	case b.State == Maintenance:
		return ReasonMaintenance
	case d.uses(s, b.State):
		return m.reasonFor(d, s, b)
	}
	return m.reasonAgainst(d, s, b)
}

// reasonFor explains a candidate whose site and state are used.
func (m *merger) reasonFor(d *decision, s *site, b *Backend) string {
	switch {
	case s.share == 0:
		return ReasonWeight
	case m.nearness(b) < s.near:
		return ReasonFarther
	case d.state == Quarantined || d.lost || s.level >= m.tiers():
		return ReasonLastResort
	case d.state == Terminating:
		return ReasonTerminatingLast
	case s.level > d.first:
		return ReasonSpillover
	case s.level > 0:
		return ReasonFallback
	}
	return ReasonActive
}

// reasonAgainst explains a candidate whose site or state is not used.
func (m *merger) reasonAgainst(d *decision, s *site, b *Backend) string {
	switch {
	case b.State == Quarantined:
		return ReasonQuarantined
	case s.lost && !d.lost:
		return ReasonStale
	case s.level > d.reach:
		return m.reasonBehind(s)
	}
	return ReasonTerminating
}

// reasonBehind explains why a site's turn did not come.
func (m *merger) reasonBehind(s *site) string {
	switch {
	case s.level > m.tiers():
		return ReasonWeight
	case s.level == m.tiers():
		return ReasonStale
	case len(m.s.Policy.Tiers) > 0 || m.s.Affinity == AffinityNone:
		return ReasonTier
	}
	return ReasonAffinity
}
