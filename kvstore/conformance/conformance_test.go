package conformance

import (
	"slices"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHealthyStandinPassesEverything(t *testing.T) {
	w := newWorld(t, "east")
	w.open()
	w.compare(expect(nil))
}

func TestChecksAreWellFormed(t *testing.T) {
	var before []string
	for _, c := range Checks() {
		if c.ID == "" || c.Group == "" || c.Title == "" || c.Why == "" || c.Remedy == "" || c.run == nil {
			t.Errorf("check %+v lacks something", c)
		}
		if slices.Contains(before, c.ID) {
			t.Errorf("check %s occurs twice", c.ID)
		}
		for _, need := range c.Needs {
			if !slices.Contains(before, need) {
				t.Errorf("check %s needs %s, which does not come before it", c.ID, need)
			}
		}
		before = append(before, c.ID)
	}
	t.Logf("%d checks", len(before))
}
