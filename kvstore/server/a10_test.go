package server

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/kvstore"
)

// TestA10_ChurnStaysInsideTheQuota writes many times the quota over the same
// keys while a peer tries all it can to make the store grow.
func TestA10_ChurnStaysInsideTheQuota(t *testing.T) {
	const quota = 48 << 20
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, generous, func(c *Config) { c.QuotaBytes, c.Log = quota, nil })
	dir := w.s.cfg.DataDir
	stop, attacked := make(chan struct{}), make(chan int, 1)
	go func() {
		n := 0
		for conn := w.dialAs(west); ; n++ {
			select {
			case <-stop:
				attacked <- n
				return
			default:
				grow(t, conn)
			}
		}
	}()
	value, writes, most := bytes.Repeat([]byte("v"), campaign(16<<10, 4<<10)), campaign(6_000, 1_000_000), int64(0)
	for i := range writes {
		if err := w.s.Store().Apply(context.Background(), []kvstore.Op{{Key: fmt.Sprintf("cilium/state/%d", i%100), Value: value}}); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		if i%500 == 0 {
			most = max(most, size(t, dir))
		}
	}
	close(stop)
	db := w.metric("clustermesh_store_size_bytes", "")
	t.Logf("%d writes, %d MB in all, against %d attempts of a peer: database %.0f MB of %d, at most %d MB on disk",
		writes, writes*len(value)>>20, <-attacked, db/(1<<20), quota>>20, most>>20)
	if db > quota {
		t.Errorf("database has %v bytes", db)
	}
	if most > quota+5*64<<20 { // the database, and logs of 64 MB each: in use, the next, and those not yet deleted
		t.Errorf("%d bytes on disk", most)
	}
	if leases, err := w.s.life.Load().etcd.LeaseLeases(w.ctx(), &pb.LeaseLeasesRequest{}); err != nil || len(leases.Leases) != 0 {
		t.Errorf("leases: %v, %v", leases, err)
	}
}

// TestLargeValuesStayInsideTheQuota has so large values that as many revisions as
// are kept otherwise would not fit.
func TestLargeValuesStayInsideTheQuota(t *testing.T) {
	const quota, size, writes = 32 << 20, 128 << 10, 1_000
	w := start(t, func(c *Config) { c.QuotaBytes, c.Log = quota, nil })
	value := bytes.Repeat([]byte("v"), size)
	for i := range writes {
		if err := w.s.Store().Apply(context.Background(), []kvstore.Op{{Key: fmt.Sprintf("cilium/state/%d", i%20), Value: value}}); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	if db := w.metric("clustermesh_store_size_bytes", ""); db > quota {
		t.Errorf("database has %v bytes", db)
	}
}

func TestCompactionsFollowWhatIsWritten(t *testing.T) {
	const mib, quota = 1 << 20, 64 << 20
	for _, tt := range []struct {
		name      string
		last      compaction
		rev, used int64
		want      int64
	}{
		{"little was written", compaction{rev: 5_000, used: 40 * mib}, 6_000, 44*mib - 1, -1},
		{"small revisions", compaction{rev: 5_000, used: 40 * mib}, 9_096, 44 * mib, keptRevisions},
		{"large revisions", compaction{rev: 5_000, used: 40 * mib}, 5_016, 44 * mib, 32},
		{"one that is larger than an eighth", compaction{rev: 5_000, used: 40 * mib}, 5_001, 52 * mib, 0},
		{"the first", compaction{}, 320, 32 * mib, 80},
		{"less than before", compaction{rev: 5_000, used: 60 * mib}, 6_000, 40 * mib, -1},
		{"another life", compaction{rev: 5_000, used: 0}, 5_000, 40 * mib, -1},
	} {
		if got := tt.last.keeps(tt.rev, tt.used, quota); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

// grow tries every call that would leave something behind in a plain etcd.
func grow(t *testing.T, conn *grpc.ClientConn) {
	ctx := context.Background()
	_, put := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: []byte("cilium/state/x"), Value: make([]byte, 1<<10)})
	_, txn := pb.NewKVClient(conn).Txn(ctx, &pb.TxnRequest{})
	_, lease := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 1 << 30})
	_, alarm := pb.NewMaintenanceClient(conn).Alarm(ctx, &pb.AlarmRequest{})
	for what, err := range map[string]error{"put": put, "transaction": txn, "lease": lease, "alarm": alarm} {
		if err == nil {
			t.Errorf("%s succeeded", what)
		}
	}
}

// size sums up the files below a directory.
func size(t *testing.T, dir string) (sum int64) {
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // etcd deletes files meanwhile
		}
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
