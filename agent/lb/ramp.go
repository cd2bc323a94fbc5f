package lb

// RampSteps is how many steps a tier takes from carrying all of its traffic to
// carrying none, or back, if its spillover has a ramp.
const RampSteps = 20

// rampStep is the part of a tier's traffic that one step moves, of scale.
const rampStep = scale / RampSteps

// keep says what each tier keeps of the traffic that reaches it, of scale: all,
// or less if it is spilling. A ramp leads there from what it kept before by no
// more than the steps that have passed, so that the next tier is loaded bit by
// bit, and so is one that comes back. What cannot wait does not: a tier without
// active backends keeps nothing at once, one that has some keeps at least a step,
// and the last one, which nobody helps, keeps all.
func (m *merger) keep(d *decision, live *levels, before []uint32) {
	d.kept = make([]uint32, m.tiers())
	last := m.lastTier(live)
	for l := range d.kept {
		have := live[l].actives()
		switch {
		case have == 0:
		case l >= last:
			d.kept[l] = scale
		default:
			target := uint32(scale)
			if d.spilling&(1<<l) != 0 {
				target = max(share(scale, uint64(have)*percent2, m.threshold(&live[l], true)), rampStep)
			}
			if d.kept[l] = target; l < len(before) {
				d.kept[l] = max(approach(before[l], target, uint64(m.s.Steps)*rampStep), rampStep)
			}
			d.ramping = d.ramping || d.kept[l] != target
		}
	}
}

// approach goes from one number towards another by at most so much.
func approach(from, to uint32, most uint64) uint32 {
	if from < to {
		return from + uint32(min(most, uint64(to-from)))
	}
	return from - uint32(min(most, uint64(from-to)))
}
