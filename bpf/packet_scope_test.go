package bpf

import (
	"fmt"
	"testing"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// nearAddr4 and nearAddr6 are the node's on the device that its clients come by.
const nearAddr4, nearAddr6 = "10.1.0.1", "fd00:1::1"

// TestPacketsToNodePorts come to an address of the node itself: its backends
// elsewhere answer, to clients outside by way of the node's address.
func TestPacketsToNodePorts(t *testing.T) {
	for _, snat := range []bool{false, true} {
		t.Run(fmt.Sprintf("snat=%t", snat), func(t *testing.T) {
			w := newPacketWorld(t, snat)
			sees4, sees6 := clientAddr4, clientAddr6
			if snat {
				sees4, sees6 = nodeAddr4, nodeAddr6
			}
			for _, proto := range []uint8{tcp, udp} {
				w.service(nearAddr4+":30080", proto, w.serveIn(proto, backendAddr4+":0"))
				w.service("["+nearAddr6+"]:30080", proto, w.serveIn(proto, "["+backendAddr6+"]:0"))
			}
			w.answers("tcp", nearAddr4+":30080", "", sees4)
			w.answers("tcp", "["+nearAddr6+"]:30080", "", sees6)
			w.answers("udp", nearAddr4+":30080", "hello", sees4+" hello")
			w.answers("udp", "["+nearAddr6+"]:30080", "hello", sees6+" hello")
		})
	}
}

// TestPacketsOfClientsOutside have a frontend of their own where there is one, and
// keep their address on the way to its backends, on the node's stack or behind it.
// For clients inside it is not there.
func TestPacketsOfClientsOutside(t *testing.T) {
	for _, outside := range []bool{false, true} {
		t.Run(fmt.Sprintf("outside=%t", outside), func(t *testing.T) {
			w := newPacketWorld(t, outside)
			stack := *w
			stack.server = w.node
			kept := map[bool]string{false: "inside", true: "outside"}[outside]
			for _, f := range []struct {
				addr, network, sees string
				proto               uint8
				near                layout.Backend
			}{
				{nearAddr4 + ":30080", "tcp", clientAddr4, tcp, w.serveIn(tcp, backendAddr4+":0")},
				{"[" + nearAddr6 + "]:30080", "tcp", clientAddr6, tcp, w.serveIn(tcp, "["+backendAddr6+"]:0")},
				{nearAddr4 + ":30080", "udp", clientAddr4 + " ?", udp, w.serveIn(udp, backendAddr4+":0")},
				{"192.0.2.1:80", "tcp", clientAddr4, tcp, stack.serveIn(tcp, nodeAddr4+":0")},
			} {
				w.insert(f.addr, f.proto, layout.ScopeAny, cluster(2, f.near))
				w.insert(f.addr, f.proto, layout.ScopeOutside, cluster(3, f.near))
				say := map[string]string{"tcp": "", "udp": "?"}[f.network]
				hits := w.hits(func() { w.answers(f.network, f.addr, say, f.sees) })
				if want := map[bool]uint16{false: 2, true: 3}[outside]; len(hits) != 1 || hits[want] != 1 {
					t.Errorf("%s %s: a client %s made the hits %v, want one of set %d", f.network, f.addr, kept, hits, want)
				}
			}
		})
	}
}

// cluster is a backend under another cluster's number, by which its set is known.
func cluster(id uint16, b layout.Backend) layout.Backend {
	b.Cluster = id
	return b
}

// TestPacketsOfClientsOutsideWithoutABackendHere are dropped, whatever the others
// have.
func TestPacketsOfClientsOutsideWithoutABackendHere(t *testing.T) {
	w := newPacketWorld(t, true)
	w.insert(nearAddr4+":30080", tcp, layout.ScopeAny, w.serveIn(tcp, backendAddr4+":0"))
	w.insert(nearAddr4+":30080", tcp, layout.ScopeOutside)
	w.refuses(nearAddr4 + ":30080")
}

// TestPacketsMeetNoFrontendOfTheHost: one for the node's own sockets is not there
// for packets, even if they claim to come to a loopback address.
func TestPacketsMeetNoFrontendOfTheHost(t *testing.T) {
	w := newPacketWorld(t, true)
	w.insert(nearAddr4+":30080", tcp, layout.ScopeHost, w.serveIn(tcp, backendAddr4+":0"))
	w.answers("tcp", nearAddr4+":30080", "", "dial tcp "+nearAddr4+":30080: connect: connection refused")
}
