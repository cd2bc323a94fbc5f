package e2e

import (
	"net/netip"
	"testing"
)

// checkKills kills parts of the product without warning. Connections keep
// succeeding, what changed meanwhile arrives when the part is back.
func checkKills(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	tr := w.begin(t, ips)
	for _, c := range w.clusters {
		t.Run("apiserver_of_"+c.name, func(t *testing.T) {
			c.export.Kill()
			tr.survive(t, "apiserver down")
			ready(t, pods[c][:1], false)
			tr.survive(t, "apiserver down, change unseen")
			c.export.up(t)
			w.settle(t, endpoints(c, "rebel-base", 1))
			ready(t, pods[c][:1], true)
			w.settle(t, endpoints(c, "rebel-base", 2))
			tr.check(t, "apiserver back")
		})
	}
	t.Run("agents", func(t *testing.T) { w.killAgents(t, tr, pods) })
	t.Run("everything", func(t *testing.T) { w.killEverything(t, tr, ips) })
	tr.end(t)
}

func (w *world) killAgents(t *testing.T, tr *traffic, pods map[*cluster][]*workload) {
	for _, n := range w.nodes() {
		n.agent.Kill()
	}
	tr.survive(t, "agents down")
	east := w.clusters[0]
	ready(t, pods[east][:1], false)
	for _, n := range w.nodes() {
		n.agent.restart(t)
	}
	w.settle(t, endpoints(east, "rebel-base", 1))
	ready(t, pods[east][:1], true)
	w.settle(t, endpoints(east, "rebel-base", 2))
	tr.check(t, "agents back")
}

// killEverything ends all parts at once, starts the agents with nothing to
// talk to, and then the apiservers.
func (w *world) killEverything(t *testing.T, tr *traffic, ips map[*cluster][]netip.Addr) {
	samplers := w.watchSets(t, ips)
	w.requireUntouched(t, func() {
		for _, c := range w.clusters {
			c.export.Kill()
		}
		for _, n := range w.nodes() {
			n.agent.Kill()
		}
		tr.survive(t, "everything down")
		for _, n := range w.nodes() {
			n.agent.start(t)
			await(t, n.agent.Process, n.agent.http, "/healthz")
		}
		tr.survive(t, "agents alone")
		w.requireCommandsAgree(t)
	})
	for _, c := range w.clusters {
		c.export.up(t)
	}
	w.settle(t, now)
	w.awaitSynced(t)
	tr.check(t, "everything back")
	requireConstant(t, samplers)
}

// checkRestart stops and starts every agent in order; not one entry is
// written.
func checkRestart(t *testing.T, w *world) {
	ips, _ := w.rebelBase(t, 2)
	tr := w.begin(t, ips)
	samplers := w.watchSets(t, ips)
	w.requireUntouched(t, func() {
		for _, n := range w.nodes() {
			requireStop(t, n.agent.Process)
			tr.check(t, "agent stopped")
			n.agent.restart(t)
		}
		w.awaitSynced(t)
		w.settle(t, now)
	})
	requireConstant(t, samplers)
	tr.end(t)
}
