package e2e

import "testing"

func TestMainJob(t *testing.T) {
	w := newWorld(t)
	t.Run("ground", func(t *testing.T) { checkGround(t, w) })
}
