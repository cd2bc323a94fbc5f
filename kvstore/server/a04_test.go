package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/clustermesh/clustermesh/kvstore"
)

// latencies are what another peer feels: of a listing, and from a write to its
// event.
type latencies struct{ list, event []time.Duration }

func (l latencies) String() string {
	return fmt.Sprintf("list p50 %v p99 %v, event p50 %v p99 %v",
		quantile(l.list, 0.5), quantile(l.list, 0.99), quantile(l.event, 0.5), quantile(l.event, 0.99))
}

func (l *latencies) add(more latencies) {
	l.list, l.event = append(l.list, more.list...), append(l.event, more.event...)
}

func quantile(d []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[int(float64(len(s)-1)*q)]
}

// feel measures n listings and n events on a connection.
func feel(t *testing.T, w *world, conn *grpc.ClientConn, n int) (l latencies) {
	t.Helper()
	s, err := pb.NewWatchClient(conn).Watch(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer s.CloseSend() //nolint:errcheck // the test is over with it
	c := watchCall{t, s}
	c.create(&pb.WatchCreateRequest{Key: []byte("cilium/state/services/v1/east/shop/"), RangeEnd: []byte("cilium/state/services/v1/east/shop0")})
	kv := pb.NewKVClient(conn)
	pace := time.NewTicker(3 * time.Millisecond)
	defer pace.Stop()
	for i := range n {
		<-pace.C
		begin := time.Now()
		if _, err := kv.Range(context.Background(), rangeOf("cilium/state/services/", "cilium/state/services0")); err != nil {
			t.Fatal(err)
		}
		l.list = append(l.list, time.Since(begin))
		begin = time.Now()
		if err := w.s.Store().Apply(context.Background(), []kvstore.Op{{Key: "cilium/state/services/v1/east/shop/cart", Value: fmt.Append(nil, i)}}); err != nil {
			t.Fatal(err)
		}
		c.recv()
		l.event = append(l.event, time.Since(begin))
	}
	return l
}

// flooder is set in the environment of a child process that floods: with the
// storm's name, the address, and the files of CA, certificate and key.
const flooder = "CLUSTERMESH_TEST_FLOODER"

const floodConnections = 8

// flooding is a process that floods, with pauses.
type flooding struct {
	process *os.Process
	stop    func()
}

func (f flooding) pause() { _ = f.process.Signal(unix.SIGSTOP) }
func (f flooding) goOn()  { _ = f.process.Signal(unix.SIGCONT) }

// flood starts a process that does something on several connections at once, as
// fast as it can, until stop is called.
func flood(t *testing.T, w *world, g guest, storm string) flooding {
	t.Helper()
	own := newFiles(t, g.cert())
	// An attacker is elsewhere: his own work must not take the server's processor.
	// On a machine that others keep busy, idle time alone would hardly let him begin.
	cmd := exec.Command("nice", "-n", "10", os.Args[0], "-test.run=^TestFlooder$")
	if campaign(0, 1) == 1 {
		cmd = exec.Command("chrt", "-i", "0", os.Args[0], "-test.run=^TestFlooder$")
	}
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", strings.Join([]string{flooder + "=" + storm, w.s.Addr().String(), own.cert, own.key}, ","))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil { // its end tells him ours
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its end is ours
	})
	t.Cleanup(stop)
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	return flooding{cmd.Process, stop}
}

// TestFlooder is not a test but the process that [flood] starts.
func TestFlooder(t *testing.T) {
	args := strings.Split(os.Getenv(flooder), ",")
	if len(args) != 4 {
		return
	}
	pair, err := tls.LoadX509KeyPair(args[2], args[3])
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"}} // an attacker's
	act := map[string]func(context.Context, *grpc.ClientConn) error{
		"watches": watchStorm, "listings": listStorm,
		"connections": func(context.Context, *grpc.ClientConn) error {
			c, err := tls.Dial("tcp", args[1], cfg)
			if err != nil {
				return err
			}
			return c.Close()
		},
	}[args[0]]
	for range floodConnections {
		conn, err := grpc.NewClient("passthrough:///"+args[1], grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				_ = act(context.Background(), conn) // refusals are what it is for
			}
		}()
	}
	fmt.Println("begun")
	_, _ = os.Stdin.Read(make([]byte, 1)) // nothing comes: this waits for the end of the test
}

// watchStorm opens a Watch call and then creates and cancels watches and asks
// for progress, without waiting for replies.
func watchStorm(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return err
	}
	go func() {
		for {
			if _, err := s.Recv(); err != nil {
				return
			}
		}
	}()
	for range 100 {
		_ = s.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("cilium/state/"), RangeEnd: []byte("cilium/state0"), StartRevision: 1}))
		_ = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
		if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 99}}}); err != nil {
			return err
		}
	}
	return nil
}

func listStorm(ctx context.Context, conn *grpc.ClientConn) error {
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { _, _ = pb.NewKVClient(conn).Range(ctx, rangeOf("cilium/state/", "cilium/state0")) })
	}
	wg.Wait()
	return ctx.Err()
}

// TestA04_FloodsOfOnePeer floods with watches, with listings and with new
// connections, and measures what another peer feels.
func TestA04_FloodsOfOnePeer(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, func(c *Config) {
		c.Log = nil
		c.Limits.Peer = PeerLimits{
			Connections: 64, ConnectsPerSecond: 10, Streams: 256, Watches: 64, CreatesPerSecond: 5, RequestsPerSecond: 2000, Ranges: 1, UnreadBytes: 4 << 20,
		}
	})
	seed(w)
	fillServices(t, w, 500)
	conn := w.dialAs(north)
	feel(t, w, conn, 100)
	for _, storm := range []string{"watches", "listings", "connections"} {
		t.Run(storm, func(t *testing.T) { feelFlood(t, w, west, conn, storm) })
	}
	if n := w.refusals("north"); n != 0 {
		t.Errorf("%v refusals hit the other peer", n)
	}
	t.Logf("%v refusals, all of the flooding peer", w.refusals("west"))
}

// feelFlood lets one peer flood and measures what another feels.
func feelFlood(t *testing.T, w *world, west guest, conn *grpc.ClientConn, storm string) {
	f := flood(t, w, west, storm)
	quiet, busy, used := compare(t, w, conn, f)
	if storm == "watches" { // on a busy machine the flooder may hardly have run yet
		eventually(t, "a limit is reached", func() bool { return w.refusals("west") > 0 })
	}
	f.stop()
	t.Logf("%.2f processors used:\nwithout: %v\nwith:    %v (p50 %+.0f %% and %+.0f %%, p99 %+.0f %% and %+.0f %%)", used, quiet, busy,
		change(quiet.list, busy.list, 0.5), change(quiet.event, busy.event, 0.5), change(quiet.list, busy.list, 0.99), change(quiet.event, busy.event, 0.99))
	if p := max(quantile(busy.list, 0.99), quantile(busy.event, 0.99)); p > time.Second {
		t.Errorf("another peer waits %v", p)
	}
}

// refusals counts what a peer was refused for asking too much.
func (w *world) refusals(peer string) (n float64) {
	for _, why := range []refusal{refusedCreates, refusedWatches, refusedRequests, refusedStreams, refusedConnects, refusedConnections} {
		n += w.peerMetric(peer, string(why))
	}
	return n
}

// processor returns the time that the process has used.
func processor(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func change(before, after []time.Duration, q float64) float64 {
	return 100 * (float64(quantile(after, q))/float64(quantile(before, q)) - 1)
}

// compare measures what a peer feels by turns without and with a flood, so that
// whatever else the machine does falls on both, and the processors that the
// server uses during the flood.
func compare(t *testing.T, w *world, conn *grpc.ClientConn, f flooding) (quiet, busy latencies, used float64) {
	const window = 100
	turns, spent, wall := campaign(2, 20), time.Duration(0), time.Duration(0)
	for range turns {
		f.pause()
		feel(t, w, conn, window/4) // what has been asked for is answered
		quiet.add(feel(t, w, conn, window))
		f.goOn()
		feel(t, w, conn, 2*window) // uses up what has gathered meanwhile
		begin, before := time.Now(), processor(t)
		busy.add(feel(t, w, conn, window))
		spent, wall = spent+processor(t)-before, wall+time.Since(begin)
	}
	return quiet, busy, spent.Seconds() / wall.Seconds()
}

func fillServices(t *testing.T, w *world, n int) {
	var ops []kvstore.Op
	for i := range n {
		ops = append(ops, kvstore.Op{Key: fmt.Sprintf("cilium/state/services/v1/east/bank/s%04d", i), Value: make([]byte, 500)})
	}
	if err := w.s.Store().Apply(w.ctx(), ops); err != nil {
		t.Fatal(err)
	}
}

// TestA04_LimitsOfAPeer reaches each limit of a peer as a whole by means of
// several connections.
func TestA04_LimitsOfAPeer(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, func(c *Config) {
		c.Limits.Peer = PeerLimits{Connections: 2, Streams: 3, Watches: 2, CreatesPerSecond: 1e9}
	})
	seed(w)
	a, b := w.dialAs(west), w.dialAs(west)
	list := func(conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0"))
		return err
	}
	open := func(conn *grpc.ClientConn) watchCall {
		s, err := pb.NewWatchClient(conn).Watch(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		return watchCall{t, s}
	}
	first, second := open(a), open(b)
	if r := first.create(&pb.WatchCreateRequest{}); r.Canceled {
		t.Fatal(r)
	}
	if r := second.create(&pb.WatchCreateRequest{}); r.Canceled {
		t.Fatal(r)
	}
	if r := second.create(&pb.WatchCreateRequest{}); !r.Canceled {
		t.Error("a third watch of the peer was created")
	}
	third := open(a)
	third.progress() // an idle call that is no watch
	eventually(t, "the third call runs", func() bool { return w.s.gateway.conns.registry.accounts["west"].streams.Load() == 3 })
	if err := list(b); err == nil {
		t.Error("a fourth call of the peer was served")
	}
	if err := list(w.dialAs(west)); err == nil {
		t.Error("a third connection of the peer was served")
	}
	if err := list(w.dialAs(north)); err != nil {
		t.Errorf("another peer: %v", err)
	}
	for why, want := range map[refusal]float64{refusedWatches: 1, refusedStreams: 1} {
		if n := w.peerMetric("west", string(why)); n != want {
			t.Errorf("%v refusals for %s, want %v", n, why, want)
		}
	}
	if w.peerMetric("west", string(refusedConnections)) == 0 {
		t.Error("the third connection is not counted")
	}
	a.Close()
	eventually(t, "a closed connection gives back all it had", func() bool {
		acc := w.s.gateway.conns.registry.accounts["west"]
		return acc.conns.Load() == 1 && acc.watches.Load() == 1 && acc.streams.Load() == 1
	})
	if err := list(w.dialAs(west)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestA04_RequestsArePaced asks faster than allowed: the excess waits, and what
// would wait for long is refused.
func TestA04_RequestsArePaced(t *testing.T) {
	t.Parallel()
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, func(c *Config) { c.Limits.Peer.RequestsPerSecond = 20 })
	seed(w)
	kv := pb.NewKVClient(w.dialAs(west))
	var served, refused atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range 100 {
		wg.Go(func() {
			if _, err := kv.Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
				refused.Add(1)
			} else {
				served.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(begin).Seconds()
	if n := float64(served.Load()); n < 40 || n > 40+20*(took+1) {
		t.Errorf("%v of 100 requests in %.1f s were served, 40 may come at once and 20 per second", n, took)
	}
	if refused.Load() == 0 || w.peerMetric("west", "requests") != float64(refused.Load()) {
		t.Errorf("%d refused, %v counted", refused.Load(), w.peerMetric("west", "requests"))
	}
}
