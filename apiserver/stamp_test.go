package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/apiserver/api"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/report"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

func TestStampsOnlyGrow(t *testing.T) {
	var s stamps
	now := time.Now()
	a, b, c := s.next(now), s.next(now.Add(-time.Hour)), s.next(now.Add(time.Second))
	if a != now.UnixMicro() || b != a+1 || c != now.Add(time.Second).UnixMicro() {
		t.Errorf("stamps %d, %d, %d", a, b, c)
	}
}

// asker asks the local API of the world's apiserver.
func (w *world) asker() api.ApiserverClient {
	w.Helper()
	path := w.config.apiSocket()
	info, err := os.Stat(path)
	w.must(err)
	if info.Mode().Perm() != 0o600 {
		w.Errorf("the socket has mode %v", info.Mode())
	}
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	w.Cleanup(func() { conn.Close() }) //nolint:errcheck // nothing was written
	return api.NewApiserverClient(conn)
}

func (w *world) stamp(asker api.ApiserverClient) schema.Stamp {
	w.Helper()
	r, err := asker.Stamp(w.Context(), &api.StampRequest{})
	w.must(err)
	s, err := schema.ParseStamp(r.GetStamp())
	w.must(err)
	return s
}

// marker returns the newest marker and its revision.
func (w *world) marker(c *clientv3.Client) (schema.Marker, int64) {
	w.Helper()
	r, err := c.Get(w.Context(), schema.MarkerKey("east"))
	w.must(err)
	if len(r.Kvs) != 1 {
		return schema.Marker{}, 0
	}
	m, err := schema.DecodeMarker("east", r.Kvs[0].Value)
	w.must(err)
	return m, r.Kvs[0].ModRevision
}

// TestAStampStandsBehindWhatWasSaidBefore: what a file said when a stamp was
// asked for is in the store at the marker's revision, at each of many times.
func TestAStampStandsBehindWhatWasSaidBefore(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.start()
	asker, reader := w.asker(), w.client(certs.Role{Kind: certs.Remote, Cluster: "west"})
	last := schema.Stamp{}
	for i := range 40 {
		address := fmt.Sprintf("10.7.1.%d", i)
		w.write("shop.yaml", strings.Replace(shop, "10.7.0.21]", address+"]", 1))
		s := w.stamp(asker)
		m, at := w.marker(reader)
		if !m.Covers(s) || s.Micros <= last.Micros || m.Begun > m.Micros {
			t.Fatalf("stamp %v after %v, marker %+v", s, last, m)
		}
		r, err := reader.Get(t.Context(), "cilium/state/services/v1/east/shop/web", clientv3.WithRev(at))
		if err != nil || len(r.Kvs) != 1 || !strings.Contains(string(r.Kvs[0].Value), address) {
			t.Fatalf("at the marker of %v: %v, %v", s, r, err)
		}
		last = s
	}
}

// TestMarkersFollowChanges by themselves.
func TestMarkersFollowChanges(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.start()
	reader := w.client(certs.Role{Kind: certs.Remote, Cluster: "west"})
	w.eventually("there is a marker", func() bool { m, _ := w.marker(reader); return m.Micros > 0 })
	w.write("shop.yaml", strings.Replace(shop, "10.7.0.21]", "10.7.0.99]", 1))
	w.until(reader, "cilium/state/services/", func(e *clientv3.Event) bool { return strings.Contains(string(e.Kv.Value), "10.7.0.99") })
	changed := w.revision(reader, "cilium/state/services/v1/east/shop/web")
	w.eventually("there is a marker behind the change", func() bool {
		m, at := w.marker(reader)
		return at > changed && !m.Asked
	})
}

// TestWaitForNodes: the apiserver hears its own agents over the endpoint that all
// read from, and Wait tells when they have a stamp; remote readers cannot report.
func TestWaitForNodes(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.start()
	asker := w.asker()
	agent := report.NewReportsClient(w.client(certs.Role{Kind: certs.Local, Cluster: "east"}).ActiveConnection())
	remote := report.NewReportsClient(w.client(certs.Role{Kind: certs.Remote, Cluster: "west"}).ActiveConnection())
	if _, err := remote.Report(t.Context(), &report.NodeReport{Node: "node-1"}); grpcstatus.Code(err) != codes.Unimplemented {
		t.Errorf("a remote reports: %v", err)
	}
	s := w.stamp(asker)
	wait := func(limit float64, nodes ...string) *api.WaitResponse {
		t.Helper()
		r, err := asker.Wait(t.Context(), &api.WaitRequest{Targets: []*api.Target{{Cluster: "east", Stamp: s.String()}}, Nodes: nodes, TimeoutSeconds: limit})
		w.must(err)
		return r
	}
	if r := wait(0.05); r.GetDone() || len(r.GetBehind()) != 1 || r.GetBehind()[0].GetNode() != "node-1" {
		t.Errorf("before any report: %v", r)
	}
	done := make(chan *api.WaitResponse, 1)
	go func() { done <- wait(30) }()
	for _, acked := range []int64{s.Micros - 1, s.Micros} {
		_, err := agent.Report(t.Context(), &report.NodeReport{Node: "node-1", Clusters: []*report.ClusterReport{{
			Name: "east", State: "synced", Acknowledged: &report.Marker{Stamp: acked, Incarnation: s.Incarnation},
		}}})
		w.must(err)
	}
	if r := <-done; !r.GetDone() || r.GetNodes() != 1 {
		t.Errorf("after the acknowledgement: %v", r)
	}
	got, err := asker.Status(t.Context(), &api.StatusRequest{})
	if err != nil || !got.GetReady() || got.GetStamp() == "" || got.GetServices() != 1 || len(got.GetNodes()) != 1 || got.GetNodes()[0].GetState() != nodeReporting {
		t.Errorf("status %v, %v", got, err)
	}
	for _, bad := range []*api.WaitRequest{{Targets: []*api.Target{{Cluster: "east", Stamp: "1"}}}, {Targets: []*api.Target{{Cluster: "e/", Stamp: s.String()}}}, {Nodes: []string{"a/b"}}} {
		if _, err := asker.Wait(t.Context(), bad); grpcstatus.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestNoStampWithoutASource: an apiserver that cannot know what its cluster has
// says so instead of stamping.
func TestNoStampWithoutASource(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.start()
	asker := w.asker()
	w.must(os.Rename(w.config.Manifests, filepath.Join(t.TempDir(), "away")))
	if _, err := asker.Stamp(t.Context(), &api.StampRequest{}); err == nil || !strings.Contains(err.Error(), "manifests") {
		t.Errorf("stamped: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		r, err := asker.Status(ctx, &api.StatusRequest{})
		w.must(err)
		if strings.Contains(strings.Join(r.GetProblems(), "\n"), w.config.Manifests) {
			return
		}
	}
}
