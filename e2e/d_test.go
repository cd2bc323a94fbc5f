package e2e

import (
	"testing"
	"time"
)

// observe is how long the maps are watched where the proof is that nothing
// happens.
const observe = 3 * time.Second

// checkEmptyStore: an apiserver that lost its data directory, or that cannot
// see its objects yet, never makes a service look empty.
func checkEmptyStore(t *testing.T, w *world) {
	ips, _ := w.rebelBase(t, 2)
	tr := w.begin(t, ips)
	for _, c := range w.clusters {
		t.Run(c.name, func(t *testing.T) {
			samplers := w.watchSets(t, ips)
			c.export.Kill()
			c.export.wipe(t)
			c.export.up(t)
			w.awaitSynced(t)
			w.settle(t, now)
			requireConstant(t, samplers)
			tr.check(t, "empty store")
		})
	}
	t.Run("all_at_once", func(t *testing.T) {
		samplers := w.watchSets(t, ips)
		for _, c := range w.clusters {
			c.export.Kill()
			c.export.wipe(t)
		}
		for _, c := range w.clusters {
			c.export.up(t)
		}
		w.awaitSynced(t)
		w.settle(t, now)
		requireConstant(t, samplers)
		tr.check(t, "empty stores")
	})
	t.Run("no_kubernetes_either", func(t *testing.T) {
		samplers := w.watchSets(t, ips)
		w.emptyAndBlind(t)
		requireConstant(t, samplers)
	})
	tr.end(t)
}

// emptyAndBlind starts apiservers with empty stores whose Kubernetes API does
// not answer; they must not claim to be complete.
func (w *world) emptyAndBlind(t *testing.T) {
	for _, c := range w.clusters {
		c.export.Kill()
		c.export.wipe(t)
		must(t, c.kube.Freeze())
		t.Cleanup(func() { must(t, c.kube.Thaw()) }) // also when the check fails; thawing twice is harmless
		c.export.start(t)
	}
	for _, c := range w.clusters {
		await(t, c.export.Process, c.export.http, "/healthz")
	}
	time.Sleep(observe)
	for _, c := range w.clusters {
		if _, err := fetch(c.export.http, "/readyz"); err == nil {
			t.Errorf("the apiserver of %s is ready without having seen an object", c.name)
		}
		must(t, c.kube.Thaw())
	}
	for _, c := range w.clusters {
		await(t, c.export.Process, c.export.http, "/readyz")
	}
	w.awaitSynced(t)
	w.settle(t, now)
}
