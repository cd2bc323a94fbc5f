package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/clustermesh/clustermesh/bpf/layout"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestR07_FloodOfEventsDelaysNoOtherCluster follows two clusters, each a process
// of its own behind TLS. One changes a service every few milliseconds; the other,
// by turns, is silent or sends a hundred thousand changes a second. What counts
// is how long a change of the first takes until it is in the maps, once the other
// has had what a cluster may take at once.
func TestR07_FloodOfEventsDelaysNoOtherCluster(t *testing.T) {
	p := newPKI(t)
	east := speak(t, p, &mouth{name: "east", id: 2, services: 1, pause: 2 * time.Millisecond, batch: 1})
	west := speak(t, p, &mouth{name: "west", id: 3, services: 1000, pause: time.Millisecond, batch: 100}, floodPriority()...)
	kernel := newStampKernel(2)
	instead := map[string]dialer{"east": p.dialler(t, east), "west": p.dialler(t, west)}
	s := newSimulationOver(t, kernel.memoryKernel, kernel, instead, func(c *Config) {
		if os.Getenv("CLUSTERMESH_CAMPAIGN") == "" {
			c.ClusterBurst = 100 * time.Millisecond // what may come at once is gone soon
		}
	})
	for i := range services {
		s.say("home", serviceName(i))
	}
	s.awaitState("east", "synced", "")
	s.awaitState("west", "synced", "")
	first := kernel.samples(100)
	for s.putOff("west") == 0 {
		first = append(first, kernel.samples(20)...)
	}
	t.Logf("of %d changes while it had that: p50 %v p99 %v", len(first), quantile(first, 0.5), quantile(first, 0.99))
	var quiet, busy []time.Duration
	for range campaign(2, 80) {
		west.signal(unix.SIGSTOP)
		kernel.samples(20)
		quiet = append(quiet, kernel.samples(campaign(100, 300))...)
		west.signal(unix.SIGCONT)
		kernel.samples(20)
		busy = append(busy, kernel.samples(campaign(100, 300))...)
	}
	t.Logf("west tried to send %d changes; change to maps without: p50 %v p99 %v, with: p50 %v p99 %v (%+.0f %%, %+.0f %%)", west.sent(),
		quantile(quiet, 0.5), quantile(quiet, 0.99), quantile(busy, 0.5), quantile(busy, 0.99), change(quiet, busy, 0.5), change(quiet, busy, 0.99))
	if q := quantile(busy, 0.99); q > 5*time.Second {
		t.Errorf("changes of another cluster take %v", q)
	}
	if more := felt(quiet, busy, 0.99); campaign(0, 1) == 1 {
		t.Logf("median over time of p99: %+.0f %%", more)
		if more > mostFelt {
			t.Errorf("another cluster's p99 grows by more than %v %%", mostFelt)
		}
	}
}

// putOff is for how long changes of a cluster were put off.
func (s *simulation) putOff(cluster string) (d time.Duration) {
	_ = s.agent.core.do(s.t.Context(), func(c *core) { d = c.putOff()[cluster] })
	return d
}

// mostFelt is how much another cluster may feel of a flood, in percent of its
// p99.
const mostFelt = 20

func campaign(short, long int) int {
	if os.Getenv("CLUSTERMESH_CAMPAIGN") != "" {
		return long
	}
	return short
}

// floodPriority is what a process is started by that must not take the agent's
// processors: a real one has its own.
func floodPriority() []string {
	if campaign(0, 1) == 1 {
		return []string{"chrt", "-i", "0"}
	}
	return []string{"nice", "-n", "10"}
}

func quantile(d []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[int(float64(len(s)-1)*q)]
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

// services is how many the own cluster has.
const services = 26

func serviceName(i int) string { return "s" + string(rune('a'+i)) }

// stampKernel notes how old the changes of a cluster are when they are in the
// maps: their backend's address says when they were sent.
type stampKernel struct {
	*memoryKernel
	cluster uint16
	sent    uint64
	ages    chan time.Duration
}

func newStampKernel(cluster uint16) *stampKernel {
	return &stampKernel{memoryKernel: newMemoryKernel(), cluster: cluster, ages: make(chan time.Duration)}
}

func (k *stampKernel) StoreBackends(offset uint32, region layout.Region, backends []layout.Backend) {
	for _, b := range backends {
		if b.Cluster == k.cluster {
			k.sent = stampOf(netip.AddrFrom16(b.Addr), uint16(b.Port[0])<<8|uint16(b.Port[1]))
		}
	}
	k.memoryKernel.StoreBackends(offset, region, backends)
}

func (k *stampKernel) StoreHeader(id uint32, h layout.Header) {
	k.memoryKernel.StoreHeader(id, h)
	if k.sent == 0 {
		return
	}
	select {
	case k.ages <- time.Duration((microseconds()-k.sent)%(1<<stampBits)) * time.Microsecond:
	default: // nobody measures
	}
	k.sent = 0
}

func (k *stampKernel) samples(n int) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = <-k.ages
	}
	return out
}

const stampBits = 39

// microseconds is a time that all processes of the machine share.
func microseconds() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano()/1000) % (1 << stampBits)
}

// stamped is a backend that says a time, and stampOf what it says.
func stamped(at uint64) (netip.Addr, uint16) {
	return netip.AddrFrom4([4]byte{10, byte(at >> 31), byte(at >> 23), byte(at >> 15)}), uint16(at) | 1<<15
}

func stampOf(a netip.Addr, port uint16) uint64 {
	b := a.Unmap().As4()
	return uint64(b[1])<<31 | uint64(b[2])<<23 | uint64(b[3])<<15 | uint64(port&(1<<15-1))
}

// mouth is a cluster that does nothing but publish: as a server of the part of
// etcd's API that agents use.
type mouth struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	name            string
	id              uint32
	services, batch int
	pause           time.Duration // between two batches
	revision        atomic.Int64
}

// speaking is a process that a mouth runs in.
type speaking struct {
	t       *testing.T
	address string
	process *os.Process
	in      io.Writer
	out     *bufio.Reader
}

const mouthTask = "CLUSTERMESH_TEST_MOUTH"

func speak(t *testing.T, p *pki, m *mouth, wrap ...string) *speaking {
	t.Helper()
	f := p.issue(t, certs.IssueRequest{Kind: certs.Server, Cluster: m.name, Hosts: []string{"127.0.0.1"}})
	args := append(wrap, os.Args[0], "-test.run=^TestMouth$")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1",
		fmt.Sprintf("%s=%s,%d,%d,%d,%d,%s,%s", mouthTask, m.name, m.id, m.services, m.batch, m.pause, f.Cert, f.Key))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) // its end is ours
	s := &speaking{t: t, process: cmd.Process, in: in, out: bufio.NewReader(out)}
	line, err := s.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s.address = strings.TrimSpace(line)
	return s
}

func (s *speaking) signal(what unix.Signal) { _ = s.process.Signal(what) }

// sent asks how many changes were sent.
func (s *speaking) sent() (n int64) {
	if _, err := s.in.Write([]byte{0}); err != nil {
		s.t.Fatal(err)
	}
	if err := binary.Read(s.out, binary.BigEndian, &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// dialler connects to a process instead of a fake cluster.
func (p *pki) dialler(t *testing.T, s *speaking) dialer {
	file := clusterfile.File{Endpoints: []string{"https://" + s.address}, TrustedCAFile: p.client.CA, CertFile: p.client.Cert, KeyFile: p.client.Key}
	return func(ctx context.Context, name string, _ clusterfile.File) (connection, error) {
		return dialTLS(slog.New(slog.DiscardHandler))(ctx, name, file)
	}
}

// TestMouth is not a test but the process that [speak] starts.
func TestMouth(t *testing.T) {
	args := strings.Split(os.Getenv(mouthTask), ",")
	if len(args) != 7 {
		return
	}
	var n [4]int
	for i := range n {
		n[i], _ = strconv.Atoi(args[i+1])
	}
	m := &mouth{name: args[0], id: uint32(n[0]), services: n[1], batch: n[2], pause: time.Duration(n[3])}
	m.revision.Store(1)
	pair, err := tls.LoadX509KeyPair(args[5], args[6])
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert})))
	pb.RegisterKVServer(s, m)
	pb.RegisterWatchServer(s, m)
	go func() { _ = s.Serve(lis) }()
	fmt.Println(lis.Addr())
	for {
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			return // the test is over
		}
		_ = binary.Write(os.Stdout, binary.BigEndian, m.revision.Load()-1)
	}
}

func (m *mouth) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: uint64(m.id), MemberId: 1, Revision: m.revision.Load()}
}

// Range lists what a cluster says besides its services.
func (m *mouth) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	config := schema.ClusterConfig{ID: m.id, Capabilities: schema.Capabilities{SyncedCanaries: true, MaxConnectedClusters: 255}}
	out := &pb.RangeResponse{Header: m.header()}
	for _, kv := range []kvstore.KV{
		{Key: schema.HeartbeatKey, Value: []byte("now")},
		{Key: schema.ClusterConfigKey(m.name), Value: config.Encode()},
		{Key: schema.CanaryKey(schema.KindService, m.name, false), Value: []byte("now")},
	} {
		if end := string(r.RangeEnd); kv.Key == string(r.Key) || kv.Key > string(r.Key) && kv.Key < end {
			out.Kvs = append(out.Kvs, &mvccpb.KeyValue{Key: []byte(kv.Key), Value: kv.Value, CreateRevision: 1, ModRevision: 1, Version: 1})
		}
	}
	out.Count = int64(len(out.Kvs))
	return out, nil
}

// Watch sends changes of services without an end; other keys never change.
func (m *mouth) Watch(s pb.Watch_WatchServer) error {
	req, err := s.Recv()
	if err != nil {
		return err
	}
	if err := s.Send(&pb.WatchResponse{Header: m.header(), Created: true}); err != nil {
		return err
	}
	if string(req.GetCreateRequest().GetKey()) != schema.WatchPrefix(schema.KindService, m.name, false) {
		<-s.Context().Done()
		return nil
	}
	tick := time.NewTicker(m.pause)
	defer tick.Stop()
	for {
		reply := &pb.WatchResponse{}
		for range m.batch {
			rev := m.revision.Add(1)
			reply.Events = append(reply.Events, &mvccpb.Event{Kv: m.change(rev)})
		}
		reply.Header = m.header()
		if err := s.Send(reply); err != nil {
			return err
		}
		<-tick.C
	}
}

func (m *mouth) change(rev int64) *mvccpb.KeyValue {
	name := fmt.Sprintf("other%d", rev%int64(m.services))
	if i := int(rev) % m.services; i < services {
		name = serviceName(i)
	}
	addr, port := stamped(microseconds())
	s := schema.Service{Cluster: m.name, ClusterID: m.id, Namespace: "ns", Name: name, Shared: true, IncludeExternal: true,
		Backends: map[netip.Addr]schema.PortMap{addr: {"": {Protocol: schema.TCP, Port: port}}}}
	return &mvccpb.KeyValue{Key: []byte(schema.ServiceKey(m.name, "ns", name)), Value: s.Encode(), CreateRevision: 1, ModRevision: rev, Version: rev}
}

func TestLatestKeepsTheLastChangeOfEachKey(t *testing.T) {
	var in []kvstore.Change
	for i, key := range []string{"a", "b", "a", "c", "b", "d"} {
		in = append(in, kvstore.Change{KV: kvstore.KV{Key: key, ModRevision: int64(i)}, Deleted: i%2 == 1})
	}
	want := fmt.Sprint(in[2:])
	if got := fmt.Sprint(latest(in)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestUpdatesArriveInPieces(t *testing.T) {
	f := &flow{piece: firstPiece}
	changes := make([]kvstore.Change, 1000)
	if n, _ := f.cut(changes); n != firstPiece {
		t.Errorf("the first piece has %d changes", n)
	}
	changes[3].Value = make([]byte, pieceBytes+1)
	if n, bytes := f.cut(changes); n != 3 || bytes != 0 {
		t.Errorf("a piece of %d changes and %d bytes is cut before a large value", n, bytes)
	}
	if n, bytes := f.cut(changes[3:]); n != 1 || bytes != pieceBytes+1 {
		t.Errorf("a large value makes a piece of %d changes and %d bytes", n, bytes)
	}
	if err := f.settle(t.Context(), piece{changes: firstPiece, services: 2, took: 100 * pieceTime}, 0); err != nil || f.piece != 1 {
		t.Errorf("after a slow piece the next one has %d changes (%v)", f.piece, err)
	}
	if _ = f.settle(t.Context(), piece{changes: 1, services: 1, took: 100 * pieceTime}, 0); f.piece != leastOfOne {
		t.Errorf("after a slow piece of one service the next one has %d changes", f.piece)
	}
	for range 20 {
		_ = f.settle(t.Context(), piece{changes: f.piece, took: time.Nanosecond}, 0)
	}
	if f.piece != mostPiece {
		t.Errorf("after fast pieces the next one has %d changes", f.piece)
	}
	f = newFlow(Config{ClusterName: "home"}.withDefaults(), "east")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.settle(ctx, piece{changes: 1000, took: time.Hour}, 0); err != nil || f.put.Load() != 0 {
		t.Errorf("a cluster pays for what others did meanwhile: %v", err)
	}
	// One small change of a large service is work for all of it.
	if got := (piece{changes: 1, bytes: 100, records: 20_000, took: 15 * time.Millisecond}).price(); got != 15*time.Millisecond {
		t.Errorf("of 15 ms for 20,000 records %v are paid", got)
	}
	if err := f.settle(ctx, piece{}, time.Hour); !errors.Is(err, context.Canceled) || f.put.Load() == 0 {
		t.Errorf("a cluster in debt goes on: %v", err)
	}
}
