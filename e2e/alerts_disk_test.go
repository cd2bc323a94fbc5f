package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/disk"
)

const (
	// changeEvery is how often a manifest of mire and north changes.
	changeEvery = 200 * time.Millisecond
	// holdFor is how long a slow disk completes nothing, and then for easeFor all.
	holdFor = 2500 * time.Millisecond
	easeFor = 700 * time.Millisecond
)

// newMire starts a cluster without nodes, whose store is on a disk of its own.
func (a *alerting) newMire(t *testing.T) {
	a.mire = a.newSite(t, "mire", 5)
	var err error
	a.mire.disk, err = disk.New(a.w.site("mire", "disk.sock"))
	must(t, err)
	t.Cleanup(func() { must(t, a.mire.disk.Close()) })
	must(t, os.WriteFile(a.w.site("mire", "manifests/home.yaml"), []byte(home), 0o600))
	a.mire.up(t)
}

// disk: the disk of mire's store is slow, and then completes nothing at all. East
// reads mire.
func (a *alerting) disk(t *testing.T) {
	page, pki := at(a.mire.http), a.w.site("mire", "pki")
	late := at(a.east.agent.http) + `, cluster="mire"`
	a.east.agent.setCluster(t, "mire", etcdConfig("https://"+a.mire.listen, pki+"/ca.crt", pki+"/remote-east.crt", pki+"/remote-east.key"))
	awaitMetric(t, a.east.agent.http, `clustermesh_agent_cluster_syncs_total{cluster="mire"}`, func(v float64) bool { return v > 0 })
	calm := repeat(t, changeEvery, func(i int) error {
		return rewrite(a.w.site("mire", "manifests/mire.yaml"), manifest("rebel-mire", "10.100.0.20", fmt.Sprintf("10.5.0.%d", i%200+1)))
	})
	ease := repeat(t, easeFor, func(int) error {
		a.mire.disk.Hold()
		time.Sleep(holdFor)
		a.mire.disk.Release()
		return nil
	})
	a.fires(t, "ClustermeshPublishingSlow", page)
	a.fires(t, "ClustermeshPropagationSlow", late)
	ease()
	a.mire.disk.Hold()
	a.fires(t, "ClustermeshPublishingStalled", page)
	a.mire.disk.Release()
	for _, alert := range []string{"ClustermeshPublishingStalled", "ClustermeshPublishingSlow"} {
		a.clears(t, alert, page)
	}
	a.clears(t, "ClustermeshPropagationSlow", late)
	calm()
}

// repeat does something again and again, with a pause after each time, until stop.
func repeat(t *testing.T, pause time.Duration, do func(i int) error) (stop func()) {
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for i := 0; ; i++ {
			if err := do(i); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-ended:
				return
			case <-time.After(pause):
			}
		}
	}()
	stop = sync.OnceFunc(func() { close(ended); <-over })
	t.Cleanup(stop)
	return stop
}

// rewrite writes a file in one step.
func rewrite(path, text string) error {
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
