package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3compactor"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"

	"github.com/clustermesh/clustermesh/kvstore"
)

const (
	memberName = "clustermesh"
	// peerURL names the only member in etcd's own records. Nothing listens
	// there and nobody connects to it.
	peerURL = "http://127.0.0.1:1"

	maxTxnOps       = 16 << 10
	maxRequestBytes = 8 << 20

	// retention is how long a listing may take to read its pages at the
	// revision of the first.
	retention = 5 * time.Minute

	// keptRevisions is how many revisions stay readable even while bursts of
	// writes force compactions, unless they are so large that an eighth of the
	// quota does not hold them.
	keptRevisions = 1000

	// purgeInterval is how often logs that are not needed any more are deleted.
	// etcd itself does it twice a minute, in which a burst of writes can fill a
	// small disk with them.
	purgeInterval = time.Second

	// stopTimeout bounds the end that somebody asked for, abandonTimeout that of a
	// broken life, which the next one waits for.
	stopTimeout    = 4 * time.Second
	abandonTimeout = 2 * time.Second
)

// life is one etcd from its empty directory to its end.
type life struct {
	etcd     *etcdserver.EtcdServer
	kv       pb.KVServer // checks requests and the quota, then calls etcd
	ring     *ring
	cluster  uint64
	member   uint64
	died     chan error      // the first reason for which this life is over
	purging  <-chan struct{} // closed when old logs are no longer deleted
	unpurged <-chan error    // why they are not
	ctx      context.Context
	cancel   context.CancelFunc // ends ctx when the life is over
	mu       sync.RWMutex       // held for reading by every call into etcd
	finished bool               // under mu: etcd was told to stop

	compacting chan struct{} // holds one while a writer compacts
	compacted  compaction    // by whoever that is: our own last one

	uncommitted atomic.Int64 // bytes written since commitBursts last committed
}

// startLife wipes the directory and starts a new etcd in it.
func startLife(ctx context.Context, cfg Config) (*life, error) {
	dir, err := emptyDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	l := &life{died: make(chan error, 1), compacting: make(chan struct{}, 1)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	lg := zapLogger(cfg.Log, l.fail)
	if l.etcd, err = l.bootstrap(etcdConfig(cfg, dir, lg)); err != nil {
		l.cancel()
		return nil, fmt.Errorf("start embedded etcd in %q: %w; check that the disk is writable and not full", dir, err)
	}
	l.etcd.Start()
	l.purging, l.unpurged = fileutil.PurgeFileWithDoneNotify(zap.NewNop(), filepath.Join(dir, "member", "wal"), "wal", 1, purgeInterval, l.ctx.Done())
	if err := l.waitReady(ctx); err != nil {
		return nil, errors.Join(err, l.stop(abandonTimeout))
	}
	l.kv = v3rpc.NewQuotaKVServer(l.etcd)
	l.cluster, l.member = uint64(l.etcd.Cluster().ID()), uint64(l.etcd.MemberID())
	// Nobody has written yet: everything from the first revision on is known.
	l.ring = newRing(cfg.Limits.RingRevisions, cfg.Limits.RingBytes, 1, l.etcd.KV().Rev())
	return l, nil
}

// emptyDir makes DataDir/etcd an empty directory that only we can read.
func emptyDir(dataDir string) (string, error) {
	dir := filepath.Join(dataDir, "etcd")
	err := os.MkdirAll(dataDir, 0o700)
	if err == nil {
		err = removeLife(dir)
	}
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("prepare data directory %q: %w; make it a directory that user %d may write, with free space, or configure another",
			dataDir, err, os.Getuid())
	}
	return dir, nil
}

// removeLife deletes what an earlier life left. That life may hang in this very
// process with its files open, so the big ones, the preallocated logs, are made
// small first. (The database is mapped into memory and must keep its size.)
func removeLife(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*"))
	for _, file := range logs {
		err = errors.Join(err, os.Truncate(file, 0))
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// etcdConfig configures a single member that listens nowhere. Its content is
// rebuilt after any failure, so it is never synced to disk.
func etcdConfig(cfg Config, dir string, lg *zap.Logger) config.ServerConfig {
	urls := types.MustNewURLs([]string{peerURL})
	return config.ServerConfig{
		Name:                        memberName,
		DataDir:                     dir,
		PeerURLs:                    urls,
		InitialPeerURLsMap:          types.URLsMap{memberName: urls},
		InitialClusterToken:         rand.Text(),
		NewCluster:                  true,
		UnsafeNoFsync:               true,
		Logger:                      lg,
		ServerFeatureGate:           features.NewDefaultServerFeatureGate(memberName, lg),
		TickMs:                      20,
		ElectionTicks:               10,
		SnapshotCount:               2000,
		SnapshotCatchUpEntries:      64,
		MaxSnapFiles:                1,
		MaxWALFiles:                 0, // see purgeInterval
		QuotaBackendBytes:           cfg.QuotaBytes,
		MaxTxnOps:                   maxTxnOps,
		MaxRequestBytes:             maxRequestBytes,
		AutoCompactionMode:          v3compactor.ModePeriodic,
		AutoCompactionRetention:     retention,
		CompactionBatchLimit:        1000,
		CompactionSleepInterval:     10 * time.Millisecond,
		WarningApplyDuration:        time.Second,
		WarningUnaryRequestDuration: time.Second,
		MaxLearners:                 1,
		BcryptCost:                  uint(bcrypt.MinCost), // no passwords exist
		Metrics:                     "basic",
	}
}

// bootstrap creates the etcd server. etcd reports some failures by ending its
// goroutine (see zapLogger), so it gets one of its own.
func (l *life) bootstrap(cfg config.ServerConfig) (*etcdserver.EtcdServer, error) {
	type result struct {
		srv *etcdserver.EtcdServer
		err error
	}
	done := make(chan result, 1)
	go func() {
		srv, err := etcdserver.NewServer(cfg)
		done <- result{srv, err}
	}()
	select {
	case r := <-done:
		return r.srv, r.err
	case err := <-l.died:
		return nil, err
	}
}

func (l *life) waitReady(ctx context.Context) error {
	select {
	case <-l.etcd.ReadyNotify():
		return nil
	case <-l.etcd.StopNotify():
		return errors.New("embedded etcd stopped while starting")
	case err := <-l.died:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fail ends the life with its first error; it never blocks.
func (l *life) fail(err error) {
	select {
	case l.died <- err:
	default:
	}
	l.cancel()
}

// watch blocks until the life is over or ctx ends.
func (l *life) watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.died:
		return fmt.Errorf("embedded etcd failed: %w", err)
	case err := <-l.unpurged:
		return fmt.Errorf("delete old logs of embedded etcd: %w", err)
	case <-l.etcd.StopNotify():
		return errors.New("embedded etcd stopped by itself")
	}
}

// commitBursts commits when a sixteenth of the quota was written since it last did.
// etcd knows the size of its database as of its last commit, which it makes every
// 100 ms; a burst of large values can fill the quota in that. What a compaction
// deleted is free two or three commits later, too.
func (l *life) commitBursts(ctx context.Context, ops []kvstore.Op, quota int64) {
	var wrote int64
	for _, op := range ops {
		wrote += int64(len(op.Key) + len(op.Value))
	}
	if l.uncommitted.Add(wrote) < quota/16 {
		return
	}
	l.uncommitted.Store(0)
	l.await(ctx, l.etcd.Backend().ForceCommit)
}

// makeRoom compacts after the write that made revision rev, when the database is
// half full and has grown by a sixteenth of the quota since it last did, for a
// burst of writes can reach the quota long before etcd's own compaction is due. The
// writer waits for it, and for the one that another writer has begun if room is
// short, so that no burst outruns it. Asking etcd for the revision instead could
// hang: what fails to be written leaves its locks behind.
func (l *life) makeRoom(ctx context.Context, rev, quota int64) {
	used := l.etcd.Backend().SizeInUse()
	if used < quota/2 {
		return
	}
	select {
	case l.compacting <- struct{}{}:
		defer func() { <-l.compacting }()
	case <-ctx.Done():
		return
	default:
		if used < quota/4*3 {
			return
		}
		select { // then there is room
		case l.compacting <- struct{}{}:
			<-l.compacting
		case <-ctx.Done():
		}
		return
	}
	last := &l.compacted
	if keep := last.keeps(rev, used, quota); keep >= 0 {
		l.await(ctx, func() { l.compact(ctx, max(1, rev-keep)) })
		if ctx.Err() == nil {
			*last = compaction{rev, l.etcd.Backend().SizeInUse()}
		}
	} else if used < last.used { // pages came free
		last.rev, last.used = rev, used
	}
}

// compaction is what a compaction left: the newest revision then, and the bytes in
// use after it.
type compaction struct{ rev, used int64 }

// keeps says how many revisions the next compaction leaves readable: as many as
// take an eighth of the quota, judged by what was written since this one. It is
// negative as long as no compaction is due.
func (c compaction) keeps(rev, used, quota int64) int64 {
	grown := used - c.used
	if grown < quota/16 || rev <= c.rev {
		return -1
	}
	return min(keptRevisions, quota/8*(rev-c.rev)/grown)
}

// await calls etcd, which does not heed ctx while it waits for the disk, and
// returns before it is done if ctx ends.
func (l *life) await(ctx context.Context, call func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if l.enter() == nil {
			defer l.leave()
			call()
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (l *life) compact(ctx context.Context, rev int64) {
	_, err := l.etcd.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
	if err != nil && ctx.Err() == nil && !errors.Is(err, mvcc.ErrCompacted) {
		l.fail(fmt.Errorf("compact at revision %d: %w", rev, err))
	}
}

// enter allows a call into etcd, to be ended by leave. Without it a call after
// the stop would touch closed files.
func (l *life) enter() error {
	l.mu.RLock()
	if l.finished {
		l.mu.RUnlock()
		return errStopped
	}
	return nil
}

func (l *life) leave() { l.mu.RUnlock() }

// stop ends etcd and waits for it, but not for ever: after a failed write parts
// of it never return. What is left of it is harmless but not free: goroutines,
// memory and the disk space of its deleted database.
func (l *life) stop(limit time.Duration) error {
	l.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.mu.Lock()
		l.finished = true
		l.mu.Unlock()
		l.etcd.Stop()
		<-l.purging
	}()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-done:
		return nil
	case <-timeout.C:
		return fmt.Errorf("stop embedded etcd: still running after %v", limit)
	}
}
