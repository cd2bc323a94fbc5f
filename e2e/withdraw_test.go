package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// onWithdraw: connections of a node's pods to a cluster that is given up for
// being out of contact, or removed from the configuration, end as the service
// wants, while connections that a pod made to a backend itself go on.
func (p *policies) onWithdraw(t *testing.T) {
	n := p.east.nodes[0]
	s, err := p.w.lab.Start(lab.Spec{
		Name: "sockets-" + n.name, Path: binary("clustermesh-agent"), Node: n.lab,
		Args: []string{"sockets", "--bpffs", n.agent.bpffs},
	})
	must(t, err)
	t.Cleanup(s.Kill)
	awaitLog(t, s, "ending connections to withdrawn backends")
	p.ask(t, "tiers", "west; local", "staleness", "withdraw:2s", "on-withdraw", "reset")
	p.await(t, n, 0, 100, 2)
	direct := p.holdTo(t, n, pod.TCP, netip.AddrPortFrom(p.pods[p.west][0].Addrs[0], targetPort), "west-")
	tcp, udp := p.hold(t, n, pod.TCP), p.hold(t, n, pod.UDPConnected)
	requireStop(t, p.west.export.Process)
	p.await(t, n, 100, 0, 2)
	awaitEnd(t, "TCP, reset", tcp)
	awaitEnd(t, "UDP, reset", udp)
	requireOpen(t, "direct", direct)
	p.west.export.up(t)
	p.await(t, n, 0, 100, 2)

	p.ask(t, "on-withdraw", "keep")
	p.awaitProblems(t, n)
	tcp, udp = p.hold(t, n, pod.TCP), p.hold(t, n, pod.UDPConnected)
	n.agent.removeCluster(t, p.west.name)
	p.await(t, n, 100, 0, 2)
	awaitEnd(t, "UDP of a cluster that was removed", udp)
	requireOpen(t, "TCP, keep", tcp)
	requireOpen(t, "direct", direct)
	n.agent.setCluster(t, p.west.name, p.w.clusterFile(p.east, p.west))
	p.await(t, n, 0, 100, 2)
	requireOpen(t, "TCP, with the cluster back", tcp)
	requireStop(t, s)
}

// awaitProblems waits until nothing is wrong with the service any more.
func (p *policies) awaitProblems(t *testing.T, n *node) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		problems := p.shown(t, n).Problems
		if len(problems) == 0 {
			return
		}
		if time.Since(begin) > giveUp {
			t.Fatalf("the problems stay: %q", problems)
		}
	}
}

// hold opens a connection to the service that a pod of west answers.
func (p *policies) hold(t *testing.T, n *node, network string) *pod.Held {
	t.Helper()
	port := uint16(80)
	if network != pod.TCP {
		port = 53
	}
	return p.holdTo(t, n, network, netip.AddrPortFrom(p.ips[p.east][0], port), "west-")
}

func (p *policies) holdTo(t *testing.T, n *node, network string, target netip.AddrPort, prefix string) *pod.Held {
	t.Helper()
	h, err := n.pods.Hold(pod.Load{Network: network, Target: target})
	must(t, err)
	t.Cleanup(func() { _ = h.Drop() }) // it may have ended
	if answer, err := h.Again(); err != nil || !strings.HasPrefix(answer, prefix) {
		t.Fatalf("%s to %s: %q answers, error %v", network, target, answer, err)
	}
	return h
}

// awaitEnd waits until a connection is ended, as its client sees it.
func awaitEnd(t *testing.T, what string, h *pod.Held) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		_, err := h.Again()
		switch {
		case err == nil && time.Since(begin) > giveUp:
			t.Errorf("%s: the connection goes on", what)
			return
		case err == nil:
			continue
		case !strings.Contains(err.Error(), "abort") && !strings.Contains(err.Error(), "destination address required"):
			t.Errorf("%s: it ended with %v", what, err)
		}
		return
	}
}

func requireOpen(t *testing.T, what string, h *pod.Held) {
	t.Helper()
	if _, err := h.Again(); err != nil {
		t.Errorf("%s: the connection has ended: %v", what, err)
	}
}
