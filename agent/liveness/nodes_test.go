package liveness

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// playBoth runs rounds of three letters: backends and nodes each answered (a),
// silent (s) or not there (n), then the control link up (u) or down (d). It
// returns the last decision and the letters of the verdicts.
func playBoth(j *Judge, script string) (d Decision, verdicts string) {
	asked := targets(4)
	side := func(letter byte) Probed {
		switch letter {
		case 'a':
			return Probed{Asked: asked[:1], Answered: []Answer{{asked[0], 1_000_000}}, Known: 4}
		case 's':
			return Probed{Asked: asked, Known: 4}
		}
		return Probed{}
	}
	var out strings.Builder
	for _, round := range strings.Fields(script) {
		o := Observation{Backends: side(round[0]), Nodes: side(round[1])}
		if round[2] == 'd' {
			o.Control = ControlDown
		}
		d = j.Round(o)
		out.WriteByte("ASD"[d.Verdict])
	}
	return d, out.String()
}

// TestNodesTellNetworkFromBackends: what nodes do shows beside what backends do,
// and decides only where no backend ever answered.
func TestNodesTellNetworkFromBackends(t *testing.T) {
	for _, c := range []struct {
		name, before, script string
		verdict              Verdict
		backends, nodes      Data
	}{
		{"backends are down, nodes and apiserver are not", "aau", "20*sau", Suspect, DataFailing, DataOK},
		{"backends and apiserver are down, nodes are not", "aau", "20*sad", Dead, DataFailing, DataOK},
		{"the network is down", "aau", "20*ssd", Dead, DataFailing, DataFailing},
		{"the network is down but for the apiserver", "aau", "20*ssu", Suspect, DataFailing, DataFailing},
		{"nodes alone", "aau", "20*asu", Alive, DataOK, DataFailing},
		{"nodes and the apiserver", "aau", "20*asd", Suspect, DataOK, DataFailing},
		{"no backends, nodes alone", "nau", "20*nsu", Suspect, DataUnknown, DataFailing},
		{"no backends, the apiserver alone", "nau", "20*nad", Suspect, DataUnknown, DataOK},
		{"no backends, both", "nau", "20*nsd", Dead, DataUnknown, DataFailing},
		{"backends that never answered, both", "sau", "20*ssd", Dead, DataUnknown, DataFailing},
		{"no backends, back by nodes", "nau", "20*nsd 5*nad", Suspect, DataUnknown, DataOK},
		{"nodes that answer bring no backends back", "aau", "20*ssd 20*sad", Dead, DataFailing, DataOK},
	} {
		j := New(Defaults(), false)
		playBoth(j, strings.Repeat(c.before+" ", 200))
		if d, _ := playBoth(j, expand(c.script)); d.Verdict != c.verdict || d.Data != c.backends || d.Nodes != c.nodes {
			t.Errorf("%s: %v, backends %v, nodes %v", c.name, d.Verdict, d.Data, d.Nodes)
		}
	}
}

// TestNodesAreProbedLessInCalm: once they are known to answer, and as long as
// backends do, but at each sign of silence as often as those.
func TestNodesAreProbedLessInCalm(t *testing.T) {
	j := New(Defaults(), false)
	count := func(script string) (n int) {
		for _, round := range strings.Fields(expand(script)) {
			d, _ := playBoth(j, round)
			n += d.NodeProbes
		}
		return n
	}
	for _, c := range []struct {
		script string
		want   int
	}{{"4*aau", 4}, {"100*aau", 20}, {"1*asu", Defaults().Burst}, {"1*aau 4*anu", 1}, {"1*sau", 1}, {"100*nau", 100}} {
		if got := count(c.script); got < c.want || got > c.want+c.want/50+1 {
			t.Errorf("%s: %d probes of nodes, want %d", c.script, got, c.want)
		}
	}
}

// TestNodesAloneNeverKill: whatever nodes do, a cluster whose control link is
// good is not dead, nor one whose backends answer.
func TestNodesAloneNeverKill(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := New(Defaults(), false)
		control, answers := rapid.Bool().Draw(t, "control"), rapid.Bool().Draw(t, "backends")
		if !control && !answers {
			control = true
		}
		if answers {
			playBoth(j, expand("10*aau"))
		}
		for _, b := range rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "rounds") {
			round := []byte{"as"[b&1], "asn"[b>>1%3], "ud"[b>>7]}
			if answers {
				round[0] = 'a'
			}
			if control {
				round[2] = 'u'
			}
			if _, v := playBoth(j, string(round)); v == "D" {
				t.Fatalf("dead with control link %v, answering backends %v", control, answers)
			}
		}
	})
}
