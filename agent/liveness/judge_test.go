package liveness

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// play runs rounds, a letter each: data path a answered, s silent, n nobody
// asked, then the control link u up, w waiting, d down. It returns the letters
// of the verdicts: A, S, D.
func play(j *Judge, script string) string {
	var out strings.Builder
	asked := targets(4)
	for _, round := range strings.Fields(script) {
		o := Observation{Backends: Probed{Known: 4}, Control: map[byte]Control{'u': ControlUp, 'w': ControlWaiting, 'd': ControlDown}[round[1]]}
		switch round[0] {
		case 'a':
			o.Backends.Asked, o.Backends.Answered = asked[:1], []Answer{{asked[0], 1_000_000}}
		case 's':
			o.Backends.Asked = asked
		}
		out.WriteByte("ASD"[j.Round(o).Verdict])
	}
	return out.String()
}

// settled is a judge of a cluster that was well for long.
func settled() *Judge {
	j := New(Defaults(), false)
	play(j, strings.Repeat("au ", 200))
	return j
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"both lost, then the data path back", "8*sd 4*ad 1*ad", "AAAASSSD" + "DDDD" + "S"},
		{"both lost, then the control link back", "8*sd 5*su", "AAAASSSD" + "DDDDS"},
		{"the control link owes an answer", "8*sw", "AAAASSSD"},
		{"control alone", "20*ad 6*au", strings.Repeat("A", 4) + strings.Repeat("S", 20) + "AA"},
		{"data alone", "20*su 6*au", strings.Repeat("A", 7) + strings.Repeat("S", 17) + "AA"},
		{"an answer in time", "7*sd 1*ad 6*sd", "AAAASSS" + "S" + "SSSSSS"},
		{"nobody to ask", "20*nd", strings.Repeat("A", 4) + strings.Repeat("S", 16)},
		{"a return that does not last", "8*sd 4*ad 1*sd 4*ad 1*sd", "AAAASSSD" + "DDDDD" + "DDDDD"},
	} {
		if got := play(settled(), expand(c.script)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// expand writes 3*xy as xy xy xy.
func expand(script string) string {
	var out []string
	for _, word := range strings.Fields(script) {
		var n int
		var round string
		if _, err := fmt.Sscanf(strings.Replace(word, "*", " ", 1), "%d %s", &n, &round); err != nil {
			panic(err)
		}
		out = append(out, strings.Repeat(round+" ", n))
	}
	return strings.Join(out, "")
}

// TestAPathThatNeverAnsweredProvesNothing: probes may be filtered all along.
func TestAPathThatNeverAnsweredProvesNothing(t *testing.T) {
	j := New(Defaults(), false)
	if got := play(j, expand("500*sd")); strings.Contains(got, "D") {
		t.Errorf("got %s", got)
	}
}

// TestAFailingPathToNobodyIsUnknown: when all targets are gone nothing could ever
// answer for them. Where the control link is lost too, that must not bring the
// cluster back.
func TestAFailingPathToNobodyIsUnknown(t *testing.T) {
	for control, want := range map[Control]Data{ControlUp: DataUnknown, ControlDown: DataFailing} {
		j := settled()
		play(j, strings.Repeat("su ", 20))
		var d Decision
		for range 2 * emptyRounds {
			d = j.Round(Observation{Control: control})
		}
		if d.Data != want || (d.Verdict == Dead) != (control == ControlDown) {
			t.Errorf("with control link %d the data path is %s and the verdict %s", control, d.Data, d.Verdict)
		}
	}
}

// TestARoughPathGetsMoreTime: right after the start, and after an answer was
// missed.
func TestARoughPathGetsMoreTime(t *testing.T) {
	early := New(Defaults(), false)
	play(early, expand("5*au"))
	rough := settled()
	play(rough, expand("1*su 1*au"))
	for _, j := range []*Judge{early, rough} {
		if got, want := strings.Index(play(j, expand("30*sd")), "D"), Defaults().RoughSilent-1; got != want {
			t.Errorf("dead in round %d, want %d", got, want)
		}
	}
}

// TestFewTargetsOrOne: all must have been asked if there are fewer than three,
// and one alone of many is not enough.
func TestFewTargetsOrOne(t *testing.T) {
	for known, dead := range map[int]bool{1: true, 2: false, 3: false, 50: false} {
		j := settled()
		var d Decision
		for range 100 {
			d = j.Round(Observation{Backends: Probed{Asked: targets(1), Known: known}, Control: ControlDown})
		}
		if (d.Verdict == Dead) != dead {
			t.Errorf("one of %d targets silent: %s", known, d.Verdict)
		}
	}
}

// latch is set by one run of rounds and cleared by another.
type latch struct {
	bad, good int // rounds in a row
	set       bool
}

func (l *latch) round(bad bool, sets, clears int) {
	if bad {
		l.bad, l.good = l.bad+1, 0
	} else {
		l.bad, l.good = 0, l.good+1
	}
	l.set = (l.set || l.bad >= sets) && l.good < clears
}

// TestOneAloneNeverKills: whatever happens, a dead cluster's data path was
// silent and its control link away for as long as configured, with neither good
// for as long since; and a dead one stays so until one of both is.
func TestOneAloneNeverKills(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Defaults()
		dead := rapid.Bool().Draw(t, "dead before")
		j := New(cfg, dead)
		data, control := latch{set: dead}, latch{set: dead}
		for _, b := range rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "rounds") {
			o := Observation{Backends: Probed{Asked: targets(int(b & 3)), Known: int(b >> 2 & 3)}, Control: Control(b >> 4 & 3 % 3)}
			if b>>6 == 3 {
				o.Backends.Answered = []Answer{{targets(1)[0], int64(b)}}
			}
			if len(o.Backends.Answered)+len(o.Backends.Asked) > 0 {
				data.round(len(o.Backends.Answered) == 0, cfg.Silent, cfg.Return)
			}
			control.round(o.Control != ControlUp, cfg.Control, cfg.Return)
			was := dead
			dead = j.Round(o).Verdict == Dead
			if dead && !(data.set && control.set) {
				t.Fatalf("dead with data path %+v and control link %+v", data, control)
			}
			if was && !dead && data.set && control.set {
				t.Fatalf("back with data path %+v and control link %+v", data, control)
			}
		}
	})
}

// TestRTT: repeated first packets are left out, the minimum is forgotten.
func TestRTT(t *testing.T) {
	j := New(Defaults(), false)
	hear := func(n int, ns int64) {
		for range n {
			j.Round(Observation{Backends: Probed{Asked: targets(1), Answered: []Answer{{targets(1)[0], ns}}}})
		}
	}
	if smoothed, least := j.RTT(); smoothed != 0 || least != 0 {
		t.Errorf("got %d, %d of nothing", smoothed, least)
	}
	hear(1, 3_000_000)
	hear(20, 1_003_000_000)
	hear(1, 2_000_000)
	if smoothed, least := j.RTT(); smoothed != 2_875_000 || least != 2_000_000 {
		t.Errorf("got %d, %d", smoothed, least)
	}
	hear(2*window+1, 9_000_000)
	if smoothed, least := j.RTT(); smoothed < 8_900_000 || least != 9_000_000 {
		t.Errorf("got %d, %d", smoothed, least)
	}
}

// TestSampleRotates: a sample asks few targets in calm, all in time, and does
// not go on asking one that failed.
func TestSampleRotates(t *testing.T) {
	s := NewSample(3)
	if got := s.Next(4); got != nil {
		t.Errorf("got %v of nothing", got)
	}
	s.Refill(targets(10))
	seen := map[netip.AddrPort]int{}
	for range 30 {
		seen[s.Next(1)[0]]++
	}
	if len(seen) != 3 {
		t.Errorf("%d targets are asked in calm, want 3", len(seen))
	}
	failed := s.Next(1)[0]
	s.Failed(failed)
	for range 6 {
		if s.Next(1)[0] == failed {
			t.Error("a target that failed is asked again at once")
		}
	}
	for range 2000 {
		seen[s.Next(1)[0]]++
	}
	if len(seen) != 10 {
		t.Errorf("only %d of 10 targets are ever asked", len(seen))
	}
	burst := map[netip.AddrPort]bool{}
	for _, a := range s.Next(4) {
		burst[a] = true
	}
	if len(burst) != 4 {
		t.Errorf("a burst asks %d targets", len(burst))
	}
	s.Refill(targets(2))
	if got := s.Next(4); s.Len() != 2 || len(got) != 4 || got[0] == got[1] {
		t.Errorf("got %v of two", got)
	}
}
