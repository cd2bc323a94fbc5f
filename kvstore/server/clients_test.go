package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdctl prepares Debian's etcdctl with a reader's certificate.
func (w *world) etcdctl(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("etcdctl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("etcdctl is missing (package etcd-client)")
		}
		t.Skip("etcdctl is not installed (package etcd-client)")
	}
	ca, cert, key := w.ca.files(name)
	flags := []string{"--endpoints=https://" + w.s.Addr().String(), "--cacert=" + ca, "--cert=" + cert, "--key=" + key}
	cmd := exec.CommandContext(w.ctx(), path, append(flags, args...)...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	return cmd
}

func TestEtcdctl(t *testing.T) {
	w := start(t)
	w.put("cilium/state/a=1", "cilium/state/b=2")
	for _, test := range []struct {
		args, want string
	}{
		{"get --prefix cilium/state/", "cilium/state/a\n1\ncilium/state/b\n2\n"},
		{"get --prefix --keys-only cilium/state/", "cilium/state/a\n\ncilium/state/b\n\n"},
		{"get --prefix --limit=1 cilium/state/", "cilium/state/a\n1\n"},
		{"get cilium/state/a", "cilium/state/a\n1\n"},
		{"get --prefix --rev=1 cilium/state/", ""},
		{"endpoint status --write-out=fields", `"Leader" : `},
		{"endpoint health", "is healthy"},
		{"get --prefix cilium/", "permission denied"},
		{"get --from-key cilium/state/", "permission denied"},
		{"put cilium/state/a 2", "is not offered"},
		{"del cilium/state/a", "is not offered"},
		{"lease grant 60", "is not offered"},
		{"member list", "is not offered"},
		{"snapshot save /dev/null", "is not offered"},
	} {
		out, _ := w.etcdctl(t, "remote", strings.Fields(test.args)...).CombinedOutput()
		if !strings.Contains(string(out), test.want) || test.want == "" && len(out) > 0 {
			t.Errorf("etcdctl %s: %s", test.args, out)
		}
	}
}

func TestEtcdctlWatch(t *testing.T) {
	w := start(t)
	w.put("cilium/state/a=1")
	cmd := w.etcdctl(t, "local-"+testCluster, "watch", "--prefix", "cilium/state/", "--rev=2")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	expect := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(lines, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	expect("PUT\ncilium/state/a\n1\n")
	w.put("cilium/state/a", "cilium/state/b=2")
	expect("DELETE\ncilium/state/a\n\nPUT\ncilium/state/b\n2\n")
	cmd.Process.Kill()
	cmd.Wait()
}

// TestPagingAsCiliumDoes lists in pages of 256 at the revision of the first,
// while keys change, and watches from there.
func TestPagingAsCiliumDoes(t *testing.T) {
	w := start(t)
	const total = 1000
	var ops []kvstore.Op
	for i := range total {
		ops = append(ops, kvstore.Op{Key: fmt.Sprintf("cilium/state/services/v1/east/ns/s%04d", i), Value: fmt.Append(nil, i)})
	}
	if err := w.s.Store().Apply(w.ctx(), ops); err != nil {
		t.Fatal(err)
	}
	c := w.client("remote-west")
	seen, rev := pages(t, w, c, func(page int) {
		w.put(fmt.Sprintf("cilium/state/services/v1/east/ns/s%04d=changed", 999-page), fmt.Sprintf("cilium/state/services/v1/east/ns/new%d=1", page))
	})
	if len(seen) != total || rev != 2 {
		t.Fatalf("%d keys at revision %d", len(seen), rev)
	}
	for i, v := range seen {
		if v != fmt.Sprint(i) {
			t.Fatalf("key %d has value %q of another revision", i, v)
		}
	}
	watch := c.Watch(w.ctx(), "cilium/state/services/v1/east/", clientv3.WithPrefix(), clientv3.WithRev(rev+1))
	for n := 0; n < 6; { // two between each of four pages
		reply := <-watch
		if reply.Err() != nil {
			t.Fatal(reply.Err())
		}
		n += len(reply.Events)
	}
}

func pages(t *testing.T, w *world, c *clientv3.Client, between func(page int)) (values []string, rev int64) {
	const prefix = "cilium/state/services/v1/east/"
	next := prefix
	for page := 0; ; page++ {
		r, err := c.Get(w.ctx(), next, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(256),
			clientv3.WithRev(rev), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
		if err != nil {
			t.Fatal(err)
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			values = append(values, string(kv.Value))
			next = string(kv.Key) + "\x00"
		}
		if !r.More {
			return values, rev
		}
		between(page)
	}
}

// TestListingWithoutLimitIsOneRevision lists more keys than are read at a time
// while transactions change the first and the last together.
func TestListingWithoutLimitIsOneRevision(t *testing.T) {
	w := start(t)
	var ops []kvstore.Op
	for i := range 3 * rangeChunk {
		ops = append(ops, kvstore.Op{Key: fmt.Sprintf("cilium/state/%05d", i), Value: []byte("0")})
	}
	ends := []*kvstore.Op{&ops[0], &ops[len(ops)-1]}
	if err := w.s.Store().Apply(w.ctx(), ops); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			pair := []kvstore.Op{{Key: ends[0].Key, Value: fmt.Append(nil, i)}, {Key: ends[1].Key, Value: fmt.Append(nil, i)}}
			if err := w.s.Store().Apply(context.Background(), pair); err != nil {
				stopped <- err
				return
			}
		}
	}()
	c := w.client("remote")
	for range 100 {
		r, err := c.Get(w.ctx(), "cilium/state/", clientv3.WithPrefix())
		if err != nil || len(r.Kvs) != len(ops) || r.Count != int64(len(ops)) {
			t.Fatalf("%v, %v", r, err)
		}
		if first, last := r.Kvs[0], r.Kvs[len(ops)-1]; first.ModRevision != last.ModRevision || r.Header.Revision < last.ModRevision {
			t.Fatalf("first key is of revision %d, last of %d, header %d", first.ModRevision, last.ModRevision, r.Header.Revision)
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}

// TestPagesEndEarlyWhenLarge reads large values in pages of many keys.
func TestPagesEndEarlyWhenLarge(t *testing.T) {
	w := start(t, func(c *Config) { c.Limits.ReplyBytes, c.Limits.UnpagedBytes = 10_000, 100_000 })
	for i := range 64 {
		w.put(fmt.Sprintf("cilium/state/services/v1/east/%02d=%s", i, strings.Repeat("v", 1500)))
	}
	c := w.client("remote")
	n := 0
	values, _ := pages(t, w, c, func(int) { n++ })
	if len(values) != 64 || n < 7 || n > 11 {
		t.Errorf("%d keys in %d pages", len(values), n+1)
	}
	if r, err := c.Get(w.ctx(), "cilium/state/", clientv3.WithPrefix()); err != nil || len(r.Kvs) != 64 {
		t.Errorf("without limit: %v, %v", r, err)
	}
	w.put("cilium/state/x=" + strings.Repeat("v", 10_000))
	if _, err := c.Get(w.ctx(), "cilium/state/", clientv3.WithPrefix()); err == nil || !strings.Contains(err.Error(), "read pages") {
		t.Errorf("without limit and too large: %v", err)
	}
}

// TestClientReconnects restarts the server at the same address with other
// content; etcd's client comes back by itself and sees another cluster id.
func TestClientReconnects(t *testing.T) {
	ca := newAuthority(t)
	address := "127.0.0.1:0"
	life := func() (*world, func()) {
		w := &world{t: t, ca: ca, log: &logBuffer{}}
		s, err := New(Config{Cluster: testCluster, DataDir: t.TempDir(), Listen: address, TLS: ca.serverTLS()})
		if err != nil {
			t.Fatal(err)
		}
		w.s = s
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		select {
		case <-s.Started():
		case err := <-ended:
			t.Fatal(err)
		}
		address = s.Addr().String()
		return w, func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	first, stop := life()
	c := first.client("remote")
	first.put("cilium/state/a=1")
	before, err := c.Get(first.ctx(), "cilium/state/a")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	stop()
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("stop with an open client took %v", d)
	}
	second, stop := life()
	defer stop()
	second.put("cilium/state/a=2")
	var after *clientv3.GetResponse
	eventually(t, "client is back", func() bool {
		after, err = c.Get(second.ctx(), "cilium/state/a")
		return err == nil
	})
	if string(after.Kvs[0].Value) != "2" || after.Header.ClusterId == before.Header.ClusterId {
		t.Errorf("got %v", after)
	}
}
