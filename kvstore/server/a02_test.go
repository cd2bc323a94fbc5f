package server

import (
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// TestA02_MalformedMethodNames sends paths and header fields that no gRPC client
// sends, and expects that no handler runs.
func TestA02_MalformedMethodNames(t *testing.T) {
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, generous)
	w.put("cilium/state/a=1")
	before := condition(t, w)
	body, err := proto.Marshal(rangeOf("cilium/state/", "cilium/state0"))
	if err != nil {
		t.Fatal(err)
	}
	h := w.rawHTTP(w.with(west.cert()))
	id := uint32(1)
	try := func(name string, fields []byte, want string) {
		t.Helper()
		if err := h.frame(frameHeaders, flagEndHeaders, id, fields); err == nil {
			_ = h.frame(frameData, flagEndStream, id, message(body))
		}
		got := h.outcome(id)
		id += 2
		if got == "closed" || got == "go away" {
			h, id = w.rawHTTP(w.with(west.cert())), 1
		}
		if (got == "data") != (want == "data") {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	const good = pb.KV_Range_FullMethodName
	try("a good one", request(good), "data")
	served := w.metric("clustermesh_gateway_requests_total", "range")
	n := 0
	for _, path := range []string{
		"etcdserverpb.KV/Range", "/etcdserverpb.KV/Range/", "//etcdserverpb.KV/Range", "/etcdserverpb.KV//Range", "/etcdserverpb.KV/range",
		"/ETCDSERVERPB.KV/Range", "/etcdserverpb.KV/Range?x=1", "/etcdserverpb.KV/Range#x", "/etcdserverpb.KV/%52ange", "/etcdserverpb%2eKV/Range",
		"https://x/etcdserverpb.KV/Range", "*", "/", "//", ".", "/etcdserverpb.KV", "etcdserverpb.KV", "/KV/Range", "/.etcdserverpb.KV/Range",
		"/etcdserverpb.KV/./Range", "/x/../etcdserverpb.KV/Range", "\\etcdserverpb.KV\\Range", "/etcdserverpb.KV/Range ", " /etcdserverpb.KV/Range",
		"/etcdserverpb.KV/Range\x00", "/etcdserverpb.KV/Range\r\nx: y", "/etcdserverpb.KV/Rang\xff", "/v3/kv/range", "/debug/pprof/heap", "/metrics",
		"/etcdserverpb.KV/" + strings.Repeat("Range", 1000), "",
	} {
		try(path, request(path), "refused")
		n++
	}
	for name, fields := range map[string][]byte{
		"two paths":          request(good, ":path", pb.KV_Put_FullMethodName),
		"GET":                literals(":method", "GET", ":scheme", "https", ":path", good, ":authority", "x", "content-type", "application/grpc"),
		"web content":        literals(":method", "POST", ":scheme", "https", ":path", good, ":authority", "x", "content-type", "application/json"),
		"upper case field":   request(good, "X-Upper", "1"),
		"connection field":   request(good, "connection", "keep-alive"),
		"unknown pseudo":     request(good, ":protocol", "websocket"),
		"unknown encoding":   request(good, "grpc-encoding", "bogus"),
		"late pseudo header": literals(":method", "POST", "content-type", "application/grpc", ":scheme", "https", ":path", good+"x"),
	} {
		try(name, fields, "refused")
		n++
	}
	if now := w.metric("clustermesh_gateway_requests_total", "range"); now > served+2 {
		t.Errorf("%v calls reached a handler", now-served)
	}
	if after := condition(t, w); after != before {
		t.Errorf("the store changed from\n%s to\n%s", before, after)
	}
	try("a good one afterwards", request(good), "data")
	t.Logf("%d malformed requests, none answered", n)
}
