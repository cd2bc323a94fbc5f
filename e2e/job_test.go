package e2e

import "testing"

// TestMainJob is the product's main job on real parts. The checks share one
// world and run one after the other; each leaves it as it found it.
func TestMainJob(t *testing.T) {
	w := newWorld(t)
	step(t, "ground", w, checkGround)
	step(t, "ground_translation", w, checkUntouched)
	w.up(t)
	step(t, "a_even_shares_and_peers", w, checkReach)
	step(t, "a_other_services_untouched", w, checkUntouched)
}

func step(t *testing.T, name string, w *world, check func(*testing.T, *world)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { check(t, w) })
}
