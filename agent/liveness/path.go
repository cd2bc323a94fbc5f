package liveness

import "net/netip"

// path follows the answers of one kind of target.
type path struct {
	data   Data
	silent int                         // rounds in a row without an answer
	asked  map[netip.AddrPort]struct{} // during the silence; no more than needed
	good   int                         // rounds in a row with an answer
	rough  int                         // share of rounds without an answer of late, of whole
	rtt    rtt

	answered bool // in the last round
	known    int  // targets there are
	empty    int  // rounds in a row without any
}

func newPath() path { return path{asked: map[netip.AddrPort]struct{}{}, rough: roughStart} }

// hear takes in what a round brought.
func (p *path) hear(cfg *Config, o Probed) {
	p.answered, p.known = len(o.Answered) > 0, o.Known
	if p.empty++; o.Known > 0 || p.answered {
		p.empty = 0
	}
	switch {
	case p.answered:
		p.smooth()
		p.silent = 0
		clear(p.asked)
		p.good++
	case len(o.Asked) > 0:
		p.good = 0
		p.silent++
		p.note(cfg, o.Asked)
	}
	for _, a := range o.Answered {
		p.rtt.add(a.RTT)
	}
	switch {
	case p.good >= cfg.Return:
		p.data = DataOK
	case p.data == DataOK && p.silent >= p.patience(cfg) && len(p.asked) >= min(cfg.Targets, o.Known):
		p.data = DataFailing
	}
}

// emptyRounds is for how many rounds in a row a failing path may have nobody to
// ask before nothing is known of it any more: about ten seconds.
const emptyRounds = 50

// abandon forgets a failing path that leads to nobody: nothing could ever answer
// for it.
func (p *path) abandon() {
	if p.empty >= emptyRounds && p.data == DataFailing {
		p.data, p.silent, p.good = DataUnknown, 0, 0
		clear(p.asked)
	}
}

// note remembers which targets did not answer.
func (p *path) note(cfg *Config, asked []netip.AddrPort) {
	for _, a := range asked {
		if len(p.asked) < cfg.Targets {
			p.asked[a] = struct{}{}
		}
	}
}

// How rough a path is, is a moving mean over about memory rounds in parts of
// whole. One round without an answer makes it rough for some seconds, a stall
// for half a minute. It starts as rough: a path has to earn trust.
const (
	whole      = 1 << 16
	memory     = 64
	roughLimit = whole / 100
	roughStart = 3 * roughLimit / 2
)

// smooth counts the rounds since the last answer. It waits for an answer to do
// so: a silence that has not ended must not make itself count for less.
func (p *path) smooth() {
	for range min(p.silent, 4*memory) {
		p.rough += (whole - p.rough) / memory
	}
	p.rough -= p.rough / memory
}

func (p *path) patience(cfg *Config) int {
	if p.rough > roughLimit {
		return cfg.RoughSilent
	}
	return cfg.Silent
}
