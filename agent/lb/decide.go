package lb

import "math/bits"

// site is one cluster's run of backends in the pool, with what the policy says
// of the cluster and what is counted and decided for the frontend at hand.
type site struct {
	first, end    int
	cluster       string
	local         bool
	demoted, lost bool
	level         int
	weight        uint32

	tally tally
	share uint32 // weight of each of its backends that are used
	near  int    // least nearness of those, 0 unless they are active
}

// tally counts candidates by state, the active ones by nearness. known counts
// all of them.
type tally struct {
	active                          [3]int32
	known, terminating, quarantined int32
}

func (t *tally) count(b *Backend, nearness int) {
	t.known++
	switch b.State {
	case Active:
		t.active[nearness]++
	case Terminating:
		t.terminating++
	case Quarantined:
		t.quarantined++
	}
}

func (t *tally) add(o *tally) {
	for i, n := range o.active {
		t.active[i] += n
	}
	t.known += o.known
	t.terminating += o.terminating
	t.quarantined += o.quarantined
}

func (t *tally) actives() int32 { return t.active[0] + t.active[1] + t.active[2] }

func (t *tally) in(s State) int32 {
	switch s {
	case Active:
		return t.actives()
	case Terminating:
		return t.terminating
	case Quarantined:
		return t.quarantined
	}
	return 0
}

// nearest is the highest nearness of an active one.
func (t *tally) nearest() int {
	for near := len(t.active) - 1; near > 0; near-- {
		if t.active[near] > 0 {
			return near
		}
	}
	return 0
}

// survey appends a site for each cluster in the pool, which is sorted by them.
func (m *merger) survey(sites []site) []site {
	for i := range m.pool {
		b := &m.pool[i]
		if i == 0 || b.Cluster != m.pool[i-1].Cluster || b.ClusterID != m.pool[i-1].ClusterID || b.Local != m.pool[i-1].Local {
			sites = append(sites, m.site(b, i))
		}
		sites[len(sites)-1].end = i + 1
	}
	return sites
}

func (m *merger) site(b *Backend, first int) site {
	s := site{first: first, cluster: b.Cluster, local: b.Local}
	p := &m.s.Policy
	if !s.local {
		age := m.s.Lost[s.cluster]
		s.demoted = p.Staleness.DemoteAfter > 0 && age >= p.Staleness.DemoteAfter
		s.lost = p.Staleness.WithdrawAfter > 0 && age >= p.Staleness.WithdrawAfter
	}
	s.weight = s.weightIn(p.Weights)
	s.level = m.level(&s)
	return s
}

// maxTiers bounds [Policy].Tiers; further ones count as the last. Two levels come
// behind them.
const maxTiers = 16

type levels [maxTiers + 2]tally

// decision is which backends a frontend uses: those in one state, of clusters
// that are in contact or of lost ones, from the level first to reach. A state
// that is never used means that there are none.
type decision struct {
	state       State
	lost        bool
	first       int
	reach       int
	spilling    uint32
	levelShares [maxTiers + 2]uint64 // of scale

	kept    []uint32 // with a ramp, of scale by tier
	ramping bool     // not where it leads yet
}

// scale is the sum of all shares. It is divisible by every number up to 20, so
// that usual shares come out exactly.
const scale = 6 * 232792560

func (d *decision) uses(s *site, state State) bool {
	return state == d.state && s.level != excluded && s.level <= d.reach && (s.lost == d.lost || state == Quarantined)
}

// decide fills in the sites' share and near. before is what is remembered of
// the decision before.
func (m *merger) decide(before FrontendTable) decision {
	var live levels
	var all, lost tally
	for k := range m.sites {
		switch s := &m.sites[k]; {
		case s.level == excluded:
		case s.lost:
			lost.add(&s.tally)
		default:
			live[s.level].add(&s.tally)
			all.add(&s.tally)
		}
	}
	d := decision{spilling: m.spilling(&live, before.Spilling)}
	if m.s.Policy.Spillover.Ramp > 0 {
		m.keep(&d, &live, before.Kept)
	}
	switch d.reach = len(live) - 1; {
	case m.s.Affinity == AffinityRemote && len(m.s.Policy.Tiers) == 0 && live[0].actives() == 0 && live[0].terminating > 0:
		// Cilium's remote affinity is no mirror image of the local one: backends
		// that are going away still hold back the local ones.
		d.state, d.reach = Terminating, 0
	case all.actives() > 0:
		m.fill(&d, &live)
	case all.terminating > 0:
		d.state = Terminating
	case lost.actives() > 0:
		d.lost = true
	case lost.terminating > 0:
		d.state, d.lost = Terminating, true
	case all.quarantined+lost.quarantined > 0:
		d.state = Quarantined
	default:
		d.state = NotReady
	}
	m.divide(&d)
	return d
}

// fill gives the levels their shares of the traffic, in order, until all is
// given.
func (m *merger) fill(d *decision, live *levels) {
	left, last := uint64(scale), m.lastTier(live)
	d.first = -1
	for l := range live {
		have := live[l].actives()
		if have == 0 {
			continue
		}
		if d.first < 0 {
			d.first = l
		}
		d.reach = l
		d.levelShares[l] = m.part(d, &live[l], l, left, l >= last)
		if left -= d.levelShares[l]; left == 0 {
			return
		}
	}
}

// part is what a level takes of the traffic that is left.
func (m *merger) part(d *decision, t *tally, l int, left uint64, last bool) uint64 {
	switch {
	case last:
	case d.kept != nil && d.kept[l] < scale:
		return uint64(share(left, uint64(d.kept[l]), scale))
	case d.kept == nil && d.spilling&(1<<l) != 0:
		return uint64(share(left, uint64(t.actives())*percent2, m.threshold(t, true)))
	}
	return left
}

// lastTier is the last tier with active backends: it has no one to help it.
func (m *merger) lastTier(live *levels) int {
	for l := m.tiers() - 1; l > 0; l-- {
		if live[l].actives() > 0 {
			return l
		}
	}
	return 0
}

// percent2 is one backend in the unit of thresholds.
const percent2 = 100 * 100

// threshold is how many active backends let a tier carry the traffic, times
// percent2. For one that is spilling already it is higher, but all known
// backends are always enough.
func (m *merger) threshold(t *tally, spilling bool) uint64 {
	p := &m.s.Policy.Spillover
	base := uint64(p.Backends) * 100
	if p.Percent > 0 {
		base = uint64(p.Percent) * uint64(t.known)
	}
	if !spilling {
		return base * 100
	}
	return min(base*(100+uint64(p.Hysteresis)), max(base*100, uint64(t.known)*percent2))
}

// spilling returns the tiers that are below their threshold. What a tier then
// gives away is measured by the higher threshold, so that the same backends
// have the same shares whether they are looked at once or again.
func (m *merger) spilling(live *levels, previous uint32) uint32 {
	if m.s.Policy.Spillover.IsZero() {
		return 0
	}
	var out uint32
	for l := range m.tiers() {
		if m.vacant(l, live) {
			continue
		}
		if uint64(live[l].actives())*percent2 < m.threshold(&live[l], previous&(1<<l) != 0) {
			out |= 1 << l
		}
	}
	return out
}

// divide divides a level's share among its backends: evenly, or by cluster
// first if there are weights. Near backends take the share of farther ones: of
// the level or, with weights, of the cluster.
func (m *merger) divide(d *decision) {
	if m.plain {
		for k := range m.sites {
			m.sites[k].share, m.sites[k].near = 1, 0
		}
		return
	}
	var groups [maxTiers + 2]group
	for k := range m.sites {
		if s := &m.sites[k]; d.uses(s, d.state) && s.tally.in(d.state) > 0 {
			g := &groups[d.group(s)]
			g.tally.add(&s.tally)
			g.weight += uint64(s.weight)
		}
	}
	for k := range m.sites {
		s := &m.sites[k]
		s.share, s.near = 0, 0
		if d.uses(s, d.state) && s.tally.in(d.state) > 0 {
			m.divideSite(d, s, &groups[d.group(s)])
		}
	}
	m.reduce()
}

// group is what the sites used of one level have together.
type group struct {
	tally  tally
	weight uint64
}

// divideSite computes a site's share. If all have weight 0 none counts.
func (m *merger) divideSite(d *decision, s *site, g *group) {
	among, weight, total := &g.tally, uint64(1), uint64(1)
	if len(m.s.Policy.Weights) > 0 && g.weight > 0 {
		among, weight, total = &s.tally, uint64(s.weight), g.weight
	}
	n := among.in(d.state)
	if d.state == Active {
		s.near = among.nearest()
		n = among.active[s.near]
	}
	if weight > 0 {
		s.share = share(d.levelShare(s), weight, total*uint64(n))
	}
}

// group is the level within which a site shares. Only active backends of
// clusters in contact are divided by level.
func (d *decision) group(s *site) int {
	if d.state != Active || d.lost {
		return 0
	}
	return s.level
}

func (d *decision) levelShare(s *site) uint64 {
	if d.state != Active || d.lost {
		return scale
	}
	return d.levelShares[s.level]
}

// share is whole * weight / n rounded to the nearest, but never nothing.
func share(whole, weight, n uint64) uint32 {
	hi, lo := bits.Mul64(whole, weight)
	lo, carry := bits.Add64(lo, n/2, 0)
	q, _ := bits.Div64(hi+carry, lo, n)
	return uint32(max(q, 1))
}

// reduce divides the sites' shares by what they have in common, so that equal
// ones become 1.
func (m *merger) reduce() {
	var common uint32
	for k := range m.sites {
		common = gcd(common, m.sites[k].share)
	}
	for k := range m.sites {
		m.sites[k].share /= max(common, 1)
	}
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
