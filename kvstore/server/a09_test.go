package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/kvstore"
)

func sha256Sum(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

// rotation is a peer whose certificates and CA change under load.
type rotation struct {
	t      *testing.T
	w      *world
	g      guest
	leaf   atomic.Pointer[tls.Certificate]
	reads  atomic.Int64
	failed atomic.Int64
	turned atomic.Int64 // how many readers use the newest certificate
}

func (r *rotation) tls() *tls.Config {
	cfg := r.w.with()
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return r.leaf.Load(), nil }
	return cfg
}

// read lists without a pause; when the certificate changes it opens the next
// connection before it closes the last one.
func (r *rotation) read(ctx context.Context) {
	cert := r.leaf.Load()
	conn := r.w.dialWith(r.tls())
	for ctx.Err() == nil {
		if now := r.leaf.Load(); now != cert {
			old := conn
			conn, cert = r.w.dialWith(r.tls()), now
			r.list(conn)
			old.Close()
			r.turned.Add(1)
		}
		r.list(conn)
	}
}

func (r *rotation) list(conn *grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	res, err := pb.NewKVClient(conn).Range(ctx, rangeOf("cilium/state/", "cilium/state0"))
	if err != nil || len(res.Kvs) == 0 {
		r.failed.Add(1)
		r.t.Errorf("a read failed: %v", err)
	}
	r.reads.Add(1)
}

// turn puts the next certificate into use and waits until every reader has
// opened a connection with it.
func (r *rotation) turn(cert tls.Certificate, readers int64) {
	r.turned.Store(0)
	r.leaf.Store(&cert)
	eventually(r.t, "all readers use the next certificate", func() bool { return r.turned.Load() == readers })
}

// TestA09_RotationsUnderLoad replaces leaves, the peer's CA with an overlap of
// old and new, and the server's own certificate, while the peer reads without a
// pause and follows a key.
func TestA09_RotationsUnderLoad(t *testing.T) {
	const readers = 3
	leaves, cas := campaign(10, 100), campaign(3, 20)
	west, files, ca := westGuest(t), newPeerFiles(t), newAuthority(t)
	server := newFiles(t, ca.server())
	w := start(t, server.serve(ca), func(c *Config) { c.Peers = files.dir.Set() }, generous)
	w.ca = ca
	seed(w)
	files.write(west, "")
	first := west.cert()
	files.until(first, true)
	r := &rotation{t: t, w: w, g: west}
	r.leaf.Store(&first)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() { r.read(ctx) })
	}
	events := r.follow(ctx, &wg)
	for range leaves {
		server.replace(ca.server())
		r.turn(r.g.cert(), readers)
	}
	for range cas {
		next := guest{ca: newAuthority(t), peer: r.g.peer}
		cert := next.cert()
		files.write(r.g, "", r.g.ca, next.ca)
		files.until(cert, true)
		r.turn(cert, readers)
		old := r.g.cert()
		files.write(r.g, "", next.ca)
		files.until(old, false)
		r.g = next
	}
	cancel()
	wg.Wait()
	written, heard := events()
	t.Logf("%d leaf and %d CA rotations: %d reads, %d failed; %d events written, %d heard in order", leaves, cas, r.reads.Load(), r.failed.Load(), written, heard)
	if written != heard {
		t.Errorf("%d events written, %d heard", written, heard)
	}
}

// follow writes a counter and watches it with etcd's own client, which connects
// again by itself. The function returned waits until all is heard.
func (r *rotation) follow(ctx context.Context, wg *sync.WaitGroup) (wait func() (written, heard int64)) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + r.w.s.Addr().String()}, TLS: r.tls(), Logger: zap.NewNop(), DialTimeout: patience,
		BackoffWaitBetween: 5 * time.Millisecond,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	const key = "cilium/state/services/v1/east/shop/counter"
	watch := c.Watch(context.Background(), key, clientv3.WithRev(1))
	var written int64
	wg.Go(func() {
		for ; ctx.Err() == nil; written++ {
			if err := r.w.s.Store().Apply(context.Background(), []kvstore.Op{{Key: key, Value: fmt.Append(nil, written)}}); err != nil {
				r.t.Error(err)
				return
			}
			time.Sleep(time.Millisecond) // a load, not a flood
		}
	})
	return func() (int64, int64) {
		heard, timeout := int64(0), time.After(patience)
		for heard < written {
			select {
			case reply := <-watch:
				for _, ev := range reply.Events {
					if string(ev.Kv.Value) != fmt.Sprint(heard) {
						r.t.Fatalf("event %q after %d", ev.Kv.Value, heard)
					}
					heard++
				}
				if reply.Err() != nil {
					r.t.Fatalf("the watch ended: %v", reply.Err())
				}
			case <-timeout:
				return written, heard
			}
		}
		return written, heard
	}
}
