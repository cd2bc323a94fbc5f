package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestReadThroughGateway(t *testing.T) {
	w := start(t)
	w.put("cilium/state/a=1", "cilium/state/b=2")
	c := w.client("remote")
	got, err := c.Get(w.ctx(), "cilium/state/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 2 || string(got.Kvs[1].Value) != "2" || got.Count != 2 || got.More {
		t.Fatalf("got %v", got)
	}
	if got.Header.ClusterId != w.s.ClusterID() || got.Header.ClusterId == 0 {
		t.Fatalf("cluster id %d, want %d", got.Header.ClusterId, w.s.ClusterID())
	}
	watch := c.Watch(w.ctx(), "cilium/state/", clientv3.WithPrefix(), clientv3.WithRev(got.Header.Revision+1))
	w.put("cilium/state/a", "cilium/state/c=3")
	reply := <-watch
	if err := reply.Err(); err != nil {
		t.Fatal(err)
	}
	if len(reply.Events) != 2 || reply.Header.Revision != got.Header.Revision+1 {
		t.Fatalf("got %v", reply)
	}
}

func TestEveryLifeIsEmptyAndHasItsOwnID(t *testing.T) {
	dir := t.TempDir()
	ids := map[uint64]bool{}
	for range 2 {
		t.Run("life", func(t *testing.T) {
			w := start(t, func(c *Config) { c.DataDir = dir })
			r, err := w.s.Store().Range(w.ctx(), "a", "z", 0, 0)
			if err != nil || len(r.KVs) != 0 || r.Revision != 1 {
				t.Fatalf("first listing: %v, %v", r, err)
			}
			if r.Life != w.s.ClusterID() || ids[r.Life] {
				t.Fatalf("life %d is not new", r.Life)
			}
			ids[r.Life] = true
			w.put("cilium/state/a=1")
		})
	}
}

func TestDataDirThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Cluster: testCluster, DataDir: file, Listen: "127.0.0.1:0", PlainTextName: "remote"})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "may write") {
		t.Fatalf("error %v names neither directory nor remedy", err)
	}
}
