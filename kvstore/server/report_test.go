package server

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/clustermesh/clustermesh/kvstore/report"
)

// inbox keeps reports, and refuses those it does not like.
type inbox struct {
	mu       sync.Mutex
	got      []*report.NodeReport
	disputed []bool // of got, whether two connections speak for the node
}

func (i *inbox) Report(r *report.NodeReport, disputed bool) error {
	if err := report.Check(r); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.got, i.disputed = append(i.got, r), append(i.disputed, disputed)
	return nil
}

func (i *inbox) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.got)
}

// TestOnlyOwnAgentsReport: for everybody else the call does not exist, exactly
// like any other that does not, and no report moves the store.
func TestOnlyOwnAgentsReport(t *testing.T) {
	box := &inbox{}
	worlds, all := classes(t, generous, func(c *Config) { c.Reports = box })
	var before []string
	for _, w := range worlds {
		seed(w)
		before = append(before, condition(t, w))
	}
	good := &report.NodeReport{Node: "n1", Clusters: []*report.ClusterReport{{Name: "east", State: "synced", LastError: strings.Repeat("x", report.MaxText)}}}
	for _, c := range all {
		own, was := strings.HasPrefix(c.name, "own agent"), box.count()
		_, err := report.NewReportsClient(c.conn).Report(worlds[0].ctx(), good)
		if own != (err == nil) || own != (box.count() == was+1) {
			t.Errorf("%s: %v, %d reports after %d", c.name, err, box.count(), was)
		}
		if own {
			continue
		}
		unknown := unknownCall(worlds[0], c.conn, "/clustermesh.report.v1.Reports/Rapport")
		if want := strings.Replace(unknown.Error(), "Rapport", "Report", 1); err == nil || err.Error() != want {
			t.Errorf("%s: it answers %v, and to a call that does not exist %v", c.name, err, unknown)
		}
	}
	for i, w := range worlds {
		if after := condition(t, w); after != before[i] {
			t.Errorf("the store changed from\n%s to\n%s", before[i], after)
		}
	}
}

func unknownCall(w *world, conn *grpc.ClientConn, path string) error {
	_, err := callRaw(w.ctx(), conn, path, []byte{0x0a, 1, 'x'})
	return err
}

// TestReportsAreBounded: in size, in what they hold, and where nobody takes them.
func TestReportsAreBounded(t *testing.T) {
	box := &inbox{}
	w := start(t, func(c *Config) { c.Reports = box })
	client := report.NewReportsClient(w.dial("local-" + testCluster))
	many := &report.NodeReport{Node: "n1"}
	for i := range report.MaxClusters + 1 {
		many.Clusters = append(many.Clusters, &report.ClusterReport{Name: fmt.Sprintf("c%d", i), State: "synced"})
	}
	for what, r := range map[string]*report.NodeReport{
		"node":         {Node: "n 1"},
		"no node":      {},
		"clusters":     many,
		"not known":    {Node: "n1", Clusters: []*report.ClusterReport{{Name: "east", State: "fine"}}},
		"cluster name": {Node: "n1", Clusters: []*report.ClusterReport{{Name: "../east", State: "synced"}}},
		"twice":        {Node: "n1", Clusters: []*report.ClusterReport{{Name: "east", State: "synced"}, {Name: "east", State: "stale"}}},
		"fault":        {Node: "n1", Fault: "\x1b[2J"},
	} {
		if _, err := client.Report(w.ctx(), r); status.Code(err) != codes.InvalidArgument || what != "no node" && !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range 300 {
		many.Clusters[i].LastError = strings.Repeat("x", report.MaxText)
	}
	if _, err := client.Report(w.ctx(), many); err == nil {
		t.Errorf("%d bytes are taken", proto.Size(many))
	}
	if box.count() != 0 {
		t.Errorf("%d reports arrived", box.count())
	}
	without := start(t)
	if _, err := report.NewReportsClient(without.dial("local-"+testCluster)).Report(w.ctx(), &report.NodeReport{Node: "n1"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("without anybody who takes reports: %v", err)
	}
}

// TestConnectionsThatSpeakForOneNode: a connection speaks for one node. When one
// that was replaced by another speaks again, two do at a time, and somebody who
// holds an agent's certificate may be one of them.
func TestConnectionsThatSpeakForOneNode(t *testing.T) {
	box := &inbox{}
	w := start(t, func(c *Config) { c.Reports = box })
	open := func() (*grpc.ClientConn, report.ReportsClient) {
		conn := w.dial("local-" + testCluster)
		return conn, report.NewReportsClient(conn)
	}
	first, one := open()
	_, two := open()
	_, three := open()
	says := func(c report.ReportsClient, node string, disputed bool) {
		t.Helper()
		if _, err := c.Report(w.ctx(), &report.NodeReport{Node: node}); err != nil {
			t.Fatal(err)
		}
		if got := box.disputed[box.count()-1]; got != disputed {
			t.Errorf("report %d: disputed is %v", box.count(), got)
		}
	}
	says(one, "n1", false)
	says(one, "n1", false)
	says(two, "n1", false) // the agent of n1 was started again
	says(two, "n1", false)
	says(one, "n1", false) // a report that comes late
	says(two, "n1", false)
	says(one, "n1", true) // or are there two?
	says(three, "n1", false)
	says(two, "n1", false)
	says(two, "n1", true)
	if !strings.Contains(w.log.String(), "two connections report for one node") {
		t.Errorf("not logged:\n%s", w.log.String())
	}
	if _, err := two.Report(w.ctx(), &report.NodeReport{Node: "n2"}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `node "n2": this connection reports for node "n1"`) {
		t.Errorf("for another node: %v", err)
	}
	first.Close()
	_, four := open()
	says(four, "n2", false)
	known := func() int {
		w.s.gateway.conns.speakers.mu.Lock()
		defer w.s.gateway.conns.speakers.mu.Unlock()
		return len(w.s.gateway.conns.speakers.last)
	}
	if n := known(); n != 2 {
		t.Errorf("%d speakers of 2 nodes", n)
	}
	w.s.Disconnect(func(string) bool { return true })
	eventually(t, "nothing is kept of closed connections", func() bool { return known() == 0 })
}

// TestWatchesHearThatAMarkerPassed: a watch that asked for progress is told the
// revision of a marker once it has all before it, and nothing else is.
func TestWatchesHearThatAMarkerPassed(t *testing.T) {
	w := start(t)
	c := w.watch(t, "remote")
	c.create(&pb.WatchCreateRequest{ProgressNotify: true})
	c.create(&pb.WatchCreateRequest{})
	c.create(&pb.WatchCreateRequest{ProgressNotify: true, Key: []byte("clustermesh/markers/east/"), RangeEnd: []byte("clustermesh/markers/east0")})
	w.put("cilium/state/a=1")
	w.put("clustermesh/markers/east/v1=1") // 3
	w.put("clustermesh/other=1")
	w.put("clustermesh/markers/east/v1=2") // 5
	have, through := map[int64]string{}, map[int64]int64{}
	for len(have[1]) == 0 || through[0] < 5 || through[2] < 5 {
		r := c.recv()
		if len(r.Events) > 0 {
			have[r.WatchId] += keys(r.Events) + " "
			continue
		}
		if r.WatchId == 1 {
			t.Fatal("a watch that did not ask for progress hears of it")
		}
		if r.Header.Revision < through[r.WatchId] || r.WatchId == 0 && have[0] == "" {
			t.Fatalf("progress %v before the events, or backwards", r)
		}
		through[r.WatchId] = r.Header.Revision
	}
	if have[0] != "+a@2 " || have[1] != "+a@2 " || !strings.Contains(have[2], "+clustermesh/markers/east/v1@3") {
		t.Errorf("got %v", have)
	}
}
