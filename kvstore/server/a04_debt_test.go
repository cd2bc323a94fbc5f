package server

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// TestA04_NothingIsReadFromDebtors lets a peer use up its share: what it asks for
// then is not even read, is counted, and is answered when the debt is paid off;
// another peer feels nothing of it.
func TestA04_NothingIsReadFromDebtors(t *testing.T) {
	t.Parallel()
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, func(c *Config) {
		c.Limits.Peer.Share, c.Limits.Peer.Burst = 0.1/float64(runtime.GOMAXPROCS(0)), time.Second
	})
	seed(w)
	list := func(kv pb.KVClient) {
		if _, err := kv.Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
			t.Error(err)
		}
	}
	indebted, other := pb.NewKVClient(w.dialAs(west)), pb.NewKVClient(w.dialAs(north))
	list(indebted)
	account := w.s.gateway.conns.registry.accounts["west"]
	taken, debt := time.Now(), account.purses.Take(time.Hour) // it is less in truth: debts have an end
	done := make(chan time.Time, 1)
	go func() { list(indebted); done <- time.Now() }()
	eventually(t, "the debt is counted", func() bool { return w.peerMetric("west", string(refusedProcessor)) > 0 })
	list(other)
	if took := (<-done).Sub(taken); took < debt*9/10 {
		t.Errorf("a peer that owes %v was answered within %v", debt, took)
	}
	if n := w.peerMetric("north", string(refusedProcessor)); n != 0 {
		t.Errorf("%v debts of the other peer are counted", n)
	}
}

// TestA05_WastedHandshakesAreRationed lets strangers use up what their address
// may waste: their next handshakes wait, and end when somebody else needs the
// place.
func TestA05_WastedHandshakesAreRationed(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *Config) {
		c.Limits.HandshakeShare, c.Limits.HandshakeBurst = 1e-9, time.Nanosecond
		c.Limits.HandshakeTimeout, c.Limits.Pending = time.Minute, 2
	})
	attempt := func(from string) error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		raw, err := d.DialContext(w.ctx(), "tcp", w.s.Addr().String())
		if err != nil {
			t.Error(err)
			return err
		}
		defer raw.Close()
		c := tls.Client(raw, w.with(w.ca.client("nobody")))
		if err := c.HandshakeContext(w.ctx()); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 9))
		return err
	}
	failures := func(why handshakeReason) float64 {
		return w.metric("clustermesh_gateway_handshake_failures_total", string(why))
	}
	parked := func() int {
		s := w.s.gateway.conns
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.parking.Len()
	}
	for i := range 3 {
		go func() { _ = attempt("127.0.0.2") }()
		eventually(t, "a handshake waits", func() bool { return parked() == min(i+1, 2) })
	}
	eventually(t, "one makes room", func() bool { return failures(failedBusy) >= 1 })
	if n := failures(failedName); n != 0 {
		t.Errorf("%v handshakes were computed", n)
	}
}

// TestA05_StrangersBehindTheSameAddress floods with handshakes of somebody
// without a certificate, from the address that a valid peer comes from too, as
// behind a load balancer that hides its clients: the peer gets in all the same.
func TestA05_StrangersBehindTheSameAddress(t *testing.T) {
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, func(c *Config) { c.Log, c.Limits.HandshakeBurst = nil, 100*time.Millisecond })
	seed(w)
	pool := 200 // of strangers that wait at a time, more than their address can pay for before they give up
	if raceEnabled {
		pool = 20
	}
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	ctx, cancel := context.WithCancel(t.Context())
	var strangers sync.WaitGroup
	defer strangers.Wait()
	defer cancel()
	attempt := func() {
		raw, err := from.DialContext(ctx, "tcp", w.s.Addr().String())
		if err != nil {
			return
		}
		defer raw.Close()
		c := tls.Client(raw, w.with())
		if c.HandshakeContext(ctx) == nil {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			_, _ = c.Read(make([]byte, 9)) // until it is refused
		}
	}
	strangers.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			for range min(5, pool-w.s.gateway.conns.waitingFrom("127.0.0.2")) {
				strangers.Go(attempt)
			}
		}
	})
	eventually(t, "strangers have used up what they may", func() bool { return w.s.gateway.conns.waitingFrom("127.0.0.2") >= pool*9/10 })
	begin := time.Now()
	dial := grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return from.DialContext(ctx, "tcp", address)
	})
	conn := w.dialAs(west, dial, grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, MaxDelay: time.Second, Multiplier: 2}}))
	long, stop := context.WithTimeout(ctx, 8*patience)
	defer stop()
	if _, err := pb.NewKVClient(conn).Range(long, rangeOf("cilium/state/", "cilium/state0"), grpc.WaitForReady(true)); err != nil {
		t.Fatalf("the valid peer did not get in: %v", err)
	}
	t.Logf("a valid peer got in within %v; %v strangers were refused, %v had to leave before", time.Since(begin).Round(time.Millisecond),
		w.metric("clustermesh_gateway_handshake_failures_total", string(failedNoCertificate)), w.metric("clustermesh_gateway_handshake_failures_total", string(failedBusy)))
}

// waitingFrom returns how many handshakes from an address wait for their turn.
func (s *connSet) waitingFrom(address string) int {
	o := s.origins.of(fromAddress{address: address})
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.parked
}

// fromAddress is a connection of which only the other end's address is known.
type fromAddress struct {
	net.Conn
	address string
}

func (a fromAddress) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(a.address)} }
