package conformance

import (
	"context"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

func headerChecks() []Check {
	return []Check{{
		ID: "header-unary", Group: "header", Title: "every reply carries an etcd cluster id", Needs: []string{"etcd-api"},
		Why:    "the client ends the connection: invalid etcd response",
		Remedy: "connect to etcd or the gateway itself; a proxy in between must not answer on its own",
		run:    func(_ context.Context, s *session) finding { return s.heard.checkPresent() },
	}, {
		ID: "header-constant", Group: "header", Title: "the cluster id is the same in all replies", Needs: []string{"etcd-api"},
		Why:    "the client ends the connection: etcd cluster ID has changed; it lists everything again, and again",
		Remedy: "do not spread one connection's requests over several replicas; balance TCP connections, not requests",
		run:    func(_ context.Context, s *session) finding { return s.heard.checkConstant() },
	}, {
		ID: "header-stream", Group: "header", Title: "watches carry the same cluster id", Needs: []string{"watch-ranges"},
		Why:    "the client ends the connection: etcd cluster ID has changed",
		Remedy: "have one server answer both listings and watches of a connection",
		run:    func(_ context.Context, s *session) finding { return s.heard.checkStreams() },
	}}
}

// headers counts what cluster ids replies carried; 0 stands for none.
type headers struct {
	mu             sync.Mutex
	unary, streams map[uint64]int
	first          uint64 // of the first reply that has one
}

// headed is a reply of etcd's API.
type headed interface {
	GetHeader() *etcdserverpb.ResponseHeader
}

func (h *headers) interceptUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	if answer, ok := reply.(headed); ok && err == nil {
		h.note(&h.unary, answer)
	}
	return err
}

func (h *headers) note(kind *map[uint64]int, reply headed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *kind == nil {
		*kind = map[uint64]int{}
	}
	id := reply.GetHeader().GetClusterId()
	(*kind)[id]++
	if h.first == 0 && kind == &h.unary {
		h.first = id
	}
}

func (h *headers) checkPresent() finding {
	if n := h.unary[0]; n > 0 {
		return fail("%s without a cluster id", count(n, "reply"))
	}
	if len(h.unary) == 0 {
		return skip("no request succeeded")
	}
	return pass("%x", h.first)
}

func (h *headers) checkConstant() finding {
	for id, n := range h.unary {
		if id != h.first && id != 0 {
			return fail("cluster id %x in %s, %x in the first", id, count(n, "reply"), h.first)
		}
	}
	return pass("%s", count(total(h.unary), "reply"))
}

func (h *headers) checkStreams() finding {
	for id, n := range h.streams {
		if id != h.first && (h.first != 0 || len(h.streams) > 1) {
			return fail("cluster id %x in %s of watches, %x in those of listings", id, count(n, "reply"), h.first)
		}
	}
	return pass("%s", count(total(h.streams), "reply"))
}

func total(counts map[uint64]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}
