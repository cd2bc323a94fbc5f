package server

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/kvstore/cost"
)

// FuzzRangeRequest decodes and filters what arrives as a request of KV.Range.
// Whatever is granted lies inside what a remote cluster may see.
func FuzzRangeRequest(f *testing.F) {
	for _, r := range []*pb.RangeRequest{
		{Key: []byte("cilium/state/services/v1/east/"), RangeEnd: []byte("cilium/state/services/v1/east0"), Limit: 10, Serializable: true},
		{Key: []byte("cilium/.heartbeat")},
		{Key: []byte("cilium/state/"), RangeEnd: []byte{0}, Revision: -1, CountOnly: true},
		{Key: []byte("clustermesh/local/"), RangeEnd: []byte("clustermesh/local0"), SortOrder: pb.RangeRequest_DESCEND, KeysOnly: true},
		{Key: []byte("cilium/"), RangeEnd: []byte("cilium0"), MinModRevision: 1, SortTarget: 9},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	cfg, m := Config{Cluster: testCluster, Log: slog.New(slog.DiscardHandler)}, newMetrics()
	end, far := net.Pipe()
	f.Cleanup(func() { end.Close(); far.Close() })
	g := &gateway{cfg: cfg, metrics: m}
	c := &conn{Conn: end, set: newConnSet(Limits{}, cfg.Log, m, newRegistry(cfg, m)), grant: grant{name: "remote-west", spans: remoteSpans(testCluster)}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var l listing
		var err error
		cost.Bounded(t, len(raw), 0, func() {
			var r pb.RangeRequest
			if err = (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, &r); err == nil {
				l, err = g.parseRange(c, &r)
			}
		})
		if err != nil {
			return
		}
		for _, k := range []string{l.span.start, l.span.start + "\xff", strings.TrimSuffix(l.span.end, "\x00")} {
			if l.span.has(k) && !remoteSees(k) {
				t.Fatalf("[%q, %q) is granted and holds %q", l.span.start, l.span.end, k)
			}
		}
		if l.span.start >= l.span.end || l.limit < 0 || l.revision < 0 {
			t.Fatalf("listing %+v", l)
		}
	})
}
