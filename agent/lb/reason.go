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
	// ReasonDuplicate: not selected, another cluster has a better claim to the same
	// address, port and protocol.
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

// fate is a reason in one byte, as it is kept while a table is made. byNothing is
// a backend that does not match, candidate one on which nothing is decided yet.
type fate uint8

const (
	byNothing fate = iota
	candidate
	byActive
	byFallback
	bySpillover
	byTerminatingLast
	byLastResort
	byTerminating
	byNotReady
	byQuarantined
	byMaintenance
	byAffinity
	byTier
	byWeight
	byStale
	byExcluded
	byFarther
	byOtherNode
	byDuplicate
)

func (f fate) selects() bool { return f >= byActive && f <= byLastResort }

// reason is one of the Reason constants.
func (f fate) reason() string {
	return [...]string{
		byActive: ReasonActive, byFallback: ReasonFallback, bySpillover: ReasonSpillover,
		byTerminatingLast: ReasonTerminatingLast, byLastResort: ReasonLastResort,
		byTerminating: ReasonTerminating, byNotReady: ReasonNotReady, byQuarantined: ReasonQuarantined,
		byMaintenance: ReasonMaintenance, byAffinity: ReasonAffinity, byTier: ReasonTier, byWeight: ReasonWeight,
		byStale: ReasonStale, byExcluded: ReasonExcluded, byFarther: ReasonFarther,
		byOtherNode: ReasonOtherNode, byDuplicate: ReasonDuplicate,
	}[f]
}

// judge decides what a decision means for one candidate.
func (m *merger) judge(d *decision, s *site, b *Backend) fate {
	switch {
	case b.State == NotReady:
		return byNotReady
	case b.State == Maintenance:
		return byMaintenance
	case d.uses(s, b.State):
		return m.reasonFor(d, s, b)
	}
	return m.reasonAgainst(d, s, b)
}

// withdraws reports whether a backend with this fate is left out because its
// whole cluster is.
func (d *decision) withdraws(s *site, f fate) bool {
	switch f {
	case byQuarantined:
		return true
	case byStale, byNotReady:
		return s.lost && !d.lost && d.state != Quarantined && d.state != NotReady
	}
	return false
}

// reasonFor explains a candidate whose site and state are used.
func (m *merger) reasonFor(d *decision, s *site, b *Backend) fate {
	switch {
	case s.share == 0:
		return byWeight
	case m.nearness(b) < s.near:
		return byFarther
	case d.state == Quarantined || d.lost || s.level >= m.tiers():
		return byLastResort
	case d.state == Terminating:
		return byTerminatingLast
	case s.level > d.first:
		return bySpillover
	case s.level > 0:
		return byFallback
	}
	return byActive
}

// reasonAgainst explains a candidate whose site or state is not used.
func (m *merger) reasonAgainst(d *decision, s *site, b *Backend) fate {
	switch {
	case b.State == Quarantined:
		return byQuarantined
	case s.lost && !d.lost:
		return byStale
	case s.level > d.reach:
		return m.reasonBehind(s)
	}
	return byTerminating
}

// reasonBehind explains why a site's turn did not come.
func (m *merger) reasonBehind(s *site) fate {
	switch {
	case s.level > m.tiers():
		return byWeight
	case s.level == m.tiers():
		return byStale
	case len(m.s.Policy.Tiers) > 0 || m.s.Affinity == AffinityNone:
		return byTier
	}
	return byAffinity
}
