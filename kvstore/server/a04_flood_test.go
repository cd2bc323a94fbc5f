package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/clustermesh/clustermesh/kvstore"
)

// In these tests the peer that floods and the one that feels it are processes
// of their own, as they are in truth; the server is the test's.

// TestA04_FloodsOfOnePeer lets a peer flood in every way that is known, and
// measures what another peer feels by turns without and with the flood, so that
// whatever else the machine does falls on both.
func TestA04_FloodsOfOnePeer(t *testing.T) {
	for _, storm := range []string{"watches", "histories", "listings", "calls", "connections", "subscribers", "sleepers"} {
		t.Run(storm, func(t *testing.T) { feelFlood(t, storm) })
	}
}

func feelFlood(t *testing.T, storm string) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, func(c *Config) {
		c.Log = nil
		// The peer that measures must not be in debt, and it asks much.
		c.Limits.Burst, c.Limits.Peer.Burst, c.Limits.HandshakeBurst = time.Hour, time.Hour, 50*time.Millisecond
		c.Limits.Peer.Connections, c.Limits.Peer.PeakShare = 64, 1
		c.QuotaBytes = 4 << 30 // no compaction of millions of changes meanwhile
	})
	// What may come at once is gone: it is the lasting flood that is measured.
	_, _ = w.s.gateway.conns.registry.current()
	w.s.gateway.conns.registry.accounts["west"].purses.Take(2 * time.Hour)
	seed(w)
	fillServices(t, w, 500)
	stop := write(t, w, manyEvents(storm))
	defer stop()
	ask := newFeeler(t, w, north)
	ask(200)
	f := flood(t, w, west, storm)
	quiet, busy, used := compare(t, ask, f, turnsOf(storm))
	if !manyEvents(storm) { // these keep to their limits, and read as they are told
		eventually(t, "a limit is reached", func() bool { return w.refusals("west") > 0 })
	}
	f.stop()
	t.Logf("%.2f processors used:\nwithout: %v\nwith:    %v (p50 %+.0f %% and %+.0f %%, p99 %+.0f %% and %+.0f %%); %v refusals", used, quiet, busy,
		change(quiet.list, busy.list, 0.5), change(quiet.event, busy.event, 0.5), change(quiet.list, busy.list, 0.99), change(quiet.event, busy.event, 0.99),
		w.refusals("west"))
	if p := max(quantile(busy.list, 0.99), quantile(busy.event, 0.99)); p > 5*time.Second {
		t.Errorf("another peer waits %v", p)
	}
	if list, event := felt(quiet.list, busy.list, 0.99), felt(quiet.event, busy.event, 0.99); campaign(0, 1) == 1 {
		t.Logf("median over time of p99: %+.0f %% and %+.0f %%", list, event)
		if most := mostFelt(storm); max(list, event) > most {
			t.Errorf("another peer's p99 grows by more than %v %%", most)
		}
	}
	if n := w.refusals("north"); n != 0 {
		t.Errorf("%v refusals hit the other peer", n)
	}
}

// refusals counts what a peer was refused for asking too much.
func (w *world) refusals(peer string) (n float64) {
	for _, why := range []refusal{refusedCreates, refusedWatches, refusedRequests, refusedStreams, refusedConnects, refusedConnections, refusedProcessor} {
		n += w.peerMetric(peer, string(why))
	}
	return n
}

// mostFelt is how much another peer may feel of a flood, in percent of its p99.
func mostFelt(storm string) float64 {
	if storm == "listings" || storm == "connections" {
		return 40 // single ones take long enough for a share of the processors to be felt
	}
	return 20
}

// manyEvents says whether a storm consists of subscribers to many changes.
func manyEvents(storm string) bool { return storm == "subscribers" || storm == "sleepers" }

// turnsOf is how often [compare] changes between without and with a storm. A
// campaign's hundred thousand changes a second fill memory and take their time.
func turnsOf(storm string) int {
	if manyEvents(storm) {
		return campaign(1, 16)
	}
	return campaign(1, 80)
}

const (
	feelPace = 2 * time.Millisecond
	// eventsAtOnce are written in one transaction.
	eventsAtOnce = 500
)

// write writes one key at a steady pace, always with the time, and beside it, if
// asked to, others as fast as the machine allows, up to a hundred thousand a second.
func write(t *testing.T, w *world, many bool) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	apply := func(ops []kvstore.Op) {
		if err := w.s.Store().Apply(ctx, ops); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	}
	every := func(pace time.Duration, f func(i int)) {
		all.Go(func() {
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				f(i)
				<-tick.C
			}
		})
	}
	every(feelPace, func(int) {
		apply([]kvstore.Op{{Key: "cilium/state/services/v1/east/shop/cart", Value: binary.BigEndian.AppendUint64(nil, now())}})
	})
	if many {
		every(time.Second*eventsAtOnce/time.Duration(campaign(2_000, 100_000)), func(i int) {
			ops := make([]kvstore.Op, eventsAtOnce)
			for k := range ops {
				ops[k] = kvstore.Op{Key: fmt.Sprintf("cilium/state/services/v1/east/bank/s%04d", k), Value: fmt.Append(nil, i)}
			}
			apply(ops)
		})
	}
	return func() { cancel(); all.Wait() }
}

// now is a time that all processes of the machine share.
func now() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano())
}

// child starts a test of this binary as a process that is told what to do, and
// waits until it has begun.
func child(t *testing.T, w *world, g guest, test, task string, wrap ...string) (cmd *exec.Cmd, in io.Writer, out *bufio.Reader) {
	t.Helper()
	own := newFiles(t, g.cert())
	args := append(wrap, os.Args[0], "-test.run=^"+test+"$")
	cmd = exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", strings.Join([]string{childTask + "=" + task, w.s.Addr().String(), own.cert, own.key}, ","))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe() // its end tells the child ours
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its end is ours
	}))
	out = bufio.NewReader(stdout)
	if _, err := out.ReadByte(); err != nil { // it has begun
		t.Fatal(err)
	}
	return cmd, stdin, out
}

// childTask is set in the environment of a child: with its task, the address,
// and the files of certificate and key.
const childTask = "CLUSTERMESH_TEST_TASK"

// childConfig is what a child was told, none for the test itself.
func childConfig(t *testing.T) (task, address string, cfg *tls.Config) {
	args := strings.Split(os.Getenv(childTask), ",")
	if len(args) != 4 {
		return "", "", nil
	}
	pair, err := tls.LoadX509KeyPair(args[2], args[3])
	if err != nil {
		t.Fatal(err)
	}
	return args[0], args[1], &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"}} // an attacker's
}

func connect(t *testing.T, address string, cfg *tls.Config) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

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
	return s[int(float64(len(s)-1)*q)].Round(time.Microsecond)
}

func change(before, after []time.Duration, q float64) float64 {
	return 100 * (float64(quantile(after, q))/float64(quantile(before, q)) - 1)
}

// felt is by how much percent a quantile grew: the median of five stretches of
// time, since one that something else disturbed says little.
func felt(before, after []time.Duration, q float64) float64 {
	const stretches = 5
	var all []float64
	for i := range stretches {
		from, to := i*len(before)/stretches, (i+1)*len(before)/stretches
		all = append(all, change(before[from:to], after[from:to], q))
	}
	slices.Sort(all)
	return all[stretches/2]
}

// newFeeler starts a process that measures n listings and n events whenever it
// is asked to.
func newFeeler(t *testing.T, w *world, g guest) (ask func(n uint32) latencies) {
	_, in, out := child(t, w, g, "TestFeeler", "feel")
	return func(n uint32) (l latencies) {
		t.Helper()
		if err := binary.Write(in, binary.BigEndian, n); err != nil {
			t.Fatal(err)
		}
		l.list, l.event = make([]time.Duration, n), make([]time.Duration, n)
		for _, d := range [][]time.Duration{l.list, l.event} {
			if err := binary.Read(out, binary.BigEndian, d); err != nil {
				t.Fatal(err)
			}
		}
		return l
	}
}

// TestFeeler is not a test but the process that [newFeeler] starts.
func TestFeeler(t *testing.T) {
	_, address, cfg := childConfig(t)
	if cfg == nil {
		return
	}
	conn := connect(t, address, cfg)
	events := make(chan time.Duration)
	go feelEvents(t, conn, events)
	kv := pb.NewKVClient(conn)
	fmt.Print("!")
	for {
		var n uint32
		if binary.Read(os.Stdin, binary.BigEndian, &n) != nil {
			return
		}
		var l latencies
		for range n {
			l.event = append(l.event, <-events)
			begin := time.Now()
			if _, err := kv.Range(context.Background(), rangeOf("cilium/state/services/", "cilium/state/services0")); err != nil {
				t.Fatal(err)
			}
			l.list = append(l.list, time.Since(begin))
		}
		for _, d := range [][]time.Duration{l.list, l.event} {
			if err := binary.Write(os.Stdout, binary.BigEndian, d); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// feelEvents measures events that carry the time of their write, and offers
// what it measured to whoever wants it.
func feelEvents(t *testing.T, conn *grpc.ClientConn, to chan<- time.Duration) {
	s, err := pb.NewWatchClient(conn).Watch(context.Background())
	if err != nil {
		t.Error(err)
		return
	}
	c := watchCall{t, s}
	c.create(&pb.WatchCreateRequest{Key: []byte("cilium/state/services/v1/east/shop/"), RangeEnd: []byte("cilium/state/services/v1/east/shop0")})
	for {
		r := c.recv()
		took := time.Duration(now() - binary.BigEndian.Uint64(r.Events[0].Kv.Value))
		select {
		case to <- took:
		default: // nobody measures
		}
	}
}

// flooding is a process that floods, with pauses. An attacker is elsewhere: his
// own work must not count. In the pauses another process takes its place, at the
// same priority, that only turns in circles, for a flooder takes what there is of
// a processor, too.
type flooding struct {
	flooder, idler *os.Process
}

func (f flooding) pause() {
	_ = f.flooder.Signal(unix.SIGSTOP)
	_ = f.idler.Signal(unix.SIGCONT)
}

func (f flooding) goOn() {
	_ = f.idler.Signal(unix.SIGSTOP)
	_ = f.flooder.Signal(unix.SIGCONT)
}

func (f flooding) stop() {
	_ = f.flooder.Kill()
	_ = f.idler.Kill()
}

const floodConnections = 8

// flood starts a process that does something on several connections at once, as
// fast as it can.
func flood(t *testing.T, w *world, g guest, storm string) flooding {
	t.Helper()
	// On a machine that others keep busy, idle time alone would hardly let him begin.
	wrap := []string{"nice", "-n", "10"}
	if campaign(0, 1) == 1 {
		wrap = []string{"chrt", "-i", "0"}
	}
	flooder, _, _ := child(t, w, g, "TestFlooder", storm, wrap...)
	idler, _, _ := child(t, w, g, "TestFlooder", "circles", wrap...)
	return flooding{flooder.Process, idler.Process}
}

// TestFlooder is not a test but the process that [flood] starts.
func TestFlooder(t *testing.T) {
	storm, address, cfg := childConfig(t)
	if cfg == nil {
		return
	}
	act := map[string]func(context.Context, *grpc.ClientConn) error{
		"watches": watchStorm(1 << 40), "histories": watchStorm(1), "listings": listStorm, "calls": callStorm,
		"connections": func(context.Context, *grpc.ClientConn) error {
			c, err := tls.Dial("tcp", address, cfg)
			if err != nil {
				return err
			}
			return c.Close()
		},
		"circles": func(context.Context, *grpc.ClientConn) error {
			for begin := time.Now(); time.Since(begin) < 10*time.Millisecond; {
			}
			return nil
		},
		"subscribers": subscribeStorm(0), "sleepers": subscribeStorm(time.Second),
	}[storm]
	for range floodConnections {
		conn := connect(t, address, cfg)
		go func() {
			for {
				_ = act(context.Background(), conn) // refusals are what it is for
				time.Sleep(time.Millisecond)        // or it would take processors from the server by turning in circles
			}
		}()
	}
	fmt.Print("!")
	_, _ = os.Stdin.Read(make([]byte, 1)) // nothing comes: this waits for the end of the test
}

// watchStorm opens a Watch call and then creates and cancels watches, from a
// revision on, and asks for progress, without waiting for replies.
func watchStorm(from int64) func(context.Context, *grpc.ClientConn) error {
	return func(ctx context.Context, conn *grpc.ClientConn) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := pb.NewWatchClient(conn).Watch(ctx)
		if err != nil {
			return err
		}
		go func() { _ = drop(s, 0) }()
		for range 100 {
			_ = s.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("cilium/state/"), RangeEnd: []byte("cilium/state0"), StartRevision: from}))
			_ = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
			if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 99}}}); err != nil {
				return err
			}
		}
		return nil
	}
}

// drop reads replies, with a pause after each.
func drop(s pb.Watch_WatchClient, pause time.Duration) error {
	for {
		if err := s.RecvMsg(new(pb.WatchResponse)); err != nil {
			return err
		}
		time.Sleep(pause) // it is what a slow reader does
	}
}

// subscribeStorm watches everything many times over, and reads with pauses.
func subscribeStorm(pause time.Duration) func(context.Context, *grpc.ClientConn) error {
	return func(ctx context.Context, conn *grpc.ClientConn) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := pb.NewWatchClient(conn).Watch(ctx, grpc.MaxCallRecvMsgSize(64<<20))
		if err != nil {
			return err
		}
		for range 8 {
			if err := s.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("cilium/state/"), RangeEnd: []byte("cilium/state0")})); err != nil {
				return err
			}
		}
		return drop(s, pause)
	}
}

func listStorm(ctx context.Context, conn *grpc.ClientConn) error {
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { _, _ = pb.NewKVClient(conn).Range(ctx, rangeOf("cilium/state/", "cilium/state0")) })
	}
	wg.Wait()
	return ctx.Err()
}

// callStorm makes calls that are refused, and leaves them at once.
func callStorm(ctx context.Context, conn *grpc.ClientConn) error {
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			if s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, pb.Lease_LeaseKeepAlive_FullMethodName); err == nil {
				_ = s.SendMsg(&pb.LeaseKeepAliveRequest{})
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// processor returns the time that the process has used.
func processor(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// compare measures what a peer feels by turns without and with a flood, and the
// processors that the server uses during the flood.
func compare(t *testing.T, ask func(uint32) latencies, f flooding, turns int) (quiet, busy latencies, used float64) {
	const window, settle = 250, 100
	spent, wall := time.Duration(0), time.Duration(0)
	ask(uint32(campaign(settle, 1000))) // uses up what may come at once
	for range turns {
		f.pause()
		ask(settle) // what has been asked for before is answered
		quiet.add(ask(window))
		f.goOn()
		ask(settle)
		begin, before := time.Now(), processor(t)
		busy.add(ask(window))
		spent, wall = spent+processor(t)-before, wall+time.Since(begin)
	}
	return quiet, busy, spent.Seconds() / wall.Seconds()
}
