package server

import (
	"encoding/binary"
	"net"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// allowance is what the server's flow control lets a client send.
type allowance struct {
	conn, initial int64
	streams       map[uint32]int64
	pings         [][]byte // not yet answered
}

// note learns from a frame of the server.
func (a *allowance) note(kind, flags byte, stream uint32, payload []byte) {
	switch {
	case kind == frameWindowUpdate && stream == 0:
		a.conn += int64(binary.BigEndian.Uint32(payload))
	case kind == frameWindowUpdate:
		a.streams[stream] += int64(binary.BigEndian.Uint32(payload))
	case kind == framePing && flags&flagAck == 0:
		a.pings = append(a.pings, payload)
	case kind == frameReset || kind == frameHeaders && flags&flagEndStream != 0:
		delete(a.streams, stream) // it ends
	case kind == frameSettings && flags&flagAck == 0:
		for ; len(payload) >= 6; payload = payload[6:] {
			if binary.BigEndian.Uint16(payload) != settingInitialWindow {
				continue
			}
			now := int64(binary.BigEndian.Uint32(payload[2:]))
			for id := range a.streams {
				a.streams[id] += now - a.initial
			}
			a.initial = now
		}
	}
}

// fill sends data that nobody asked for on all streams, as much as flow control
// allows but not beyond most. It answers pings as late as it can, which looks
// like a fast and distant network.
func (h *rawHTTP) fill(a *allowance, most int) (sent int) {
	for sent < most {
		before := sent
		for id, left := range a.streams {
			n := min(left, a.conn, 16<<10)
			if n <= 0 {
				continue
			}
			if h.frame(frameData, 0, id, make([]byte, n)) != nil {
				return sent
			}
			a.streams[id], a.conn, sent = left-n, a.conn-n, sent+int(n)
		}
		if sent > before {
			continue
		}
		for _, p := range a.pings {
			_ = h.frame(framePing, flagAck, 0, p) // the next frame will show it
		}
		a.pings = nil
		_ = h.SetReadDeadline(time.Now().Add(time.Second))
		kind, flags, stream, payload, err := h.next()
		if err != nil {
			return sent // nothing more is allowed
		}
		a.note(kind, flags, stream, payload)
	}
	return sent
}

// TestA05_DataThatNobodyReads sends as much as flow control allows into calls
// that need none of it: what is kept must stay small.
func TestA05_DataThatNobodyReads(t *testing.T) {
	t.Parallel()
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, patient, func(c *Config) { c.Log = nil })
	seed(w)
	for path, first := range map[string][]byte{
		healthpb.Health_Watch_FullMethodName: message(nil),
		pb.KV_Range_FullMethodName:           {0, 0, 0, 0xff, 0}, // of a message
	} {
		h := w.rawHTTP(w.with(west.cert()))
		a := &allowance{conn: 64<<10 - 1, initial: 64<<10 - 1, streams: map[uint32]int64{}}
		h.calls(path, first, 0, func(id uint32) {
			a.streams[id] = a.initial - int64(len(first))
			a.conn -= int64(len(first))
		})
		const most = 64 * 160 << 10 // a stream's window, its message, and what both hold beside
		sent := h.fill(a, 2*most)
		t.Logf("%s: %d KiB are taken from 64 calls that need none of it", path, sent>>10)
		if sent > most {
			t.Errorf("%s: the server takes %d bytes that nobody reads, at most %d are all right", path, sent, most)
		}
		if _, err := pb.NewKVClient(w.dialAs(north)).Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
			t.Errorf("%s: another peer is not served: %v", path, err)
		}
		h.Close()
	}
}

// calls begins 64 calls and says the same in each.
func (h *rawHTTP) calls(path string, say []byte, flags byte, begun func(id uint32)) {
	h.t.Helper()
	for id := uint32(1); id < 128; id += 2 {
		if err := h.frame(frameHeaders, flagEndHeaders, id, request(path)); err != nil {
			h.t.Fatal(err)
		}
		if err := h.frame(frameData, flags, id, say); err != nil {
			h.t.Fatal(err)
		}
		begun(id)
	}
}

// accountOf returns what a peer takes, also before it has come.
func (w *world) accountOf(peer string) *account {
	r := w.s.gateway.conns.registry
	_, _ = r.current()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accounts[peer]
}

// TestA05_RequestsWithoutEnd never says that its requests are complete: the
// calls must not stay.
func TestA05_RequestsWithoutEnd(t *testing.T) {
	t.Parallel()
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, patient, func(c *Config) { c.Limits.SendTimeout = 16 * time.Second })
	account := w.accountOf("west")
	for n, path := range []string{
		healthpb.Health_Watch_FullMethodName, healthpb.Health_Check_FullMethodName, pb.KV_Range_FullMethodName, pb.Maintenance_Status_FullMethodName,
	} {
		h := w.rawHTTP(w.with(west.cert()))
		h.calls(path, message(nil), 0, func(uint32) {})
		eventually(t, path+" was called", func() bool { return account.streams.Load() > 0 })
		eventually(t, path+" ends", func() bool { return account.streams.Load() == 0 && account.conns.Load() == 0 })
		if got := w.peerMetric("west", string(refusedIncomplete)); got != float64(n+1) {
			t.Errorf("%s: %v connections were closed for it, want %d", path, got, n+1)
		}
	}
	h := w.rawHTTP(w.with(west.cert()))
	h.calls(healthpb.Health_Watch_FullMethodName, message(nil), flagEndStream, func(uint32) {})
	if got := h.outcome(127); got != "data" {
		t.Errorf("a complete request: %s", got)
	}
}

// TestRequestsUpToTheLimit makes requests of up to the largest size, which is
// as large as a stream's window: one inside is answered, one beyond refused.
func TestRequestsUpToTheLimit(t *testing.T) {
	t.Parallel()
	w := start(t, generous)
	kv := pb.NewKVClient(w.dial("remote"))
	for size, want := range map[int]codes.Code{
		60 << 10: codes.InvalidArgument, 64<<10 - 8: codes.InvalidArgument, 65 << 10: codes.ResourceExhausted,
	} {
		_, err := kv.Range(w.ctx(), &pb.RangeRequest{Key: make([]byte, size)})
		if status.Code(err) != want {
			t.Errorf("a request of %d bytes: %v, want %v", size, err, want)
		}
	}
}

// TestA05_ResetsThatNobodyReads asks for small keys and takes each question back,
// without ever reading: the connection has to end.
func TestA05_ResetsThatNobodyReads(t *testing.T) {
	t.Parallel()
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, generous, func(c *Config) { c.Log, c.Limits.SendTimeout = nil, 4*time.Second })
	seed(w)
	w.put("cilium/state/small=" + string(make([]byte, 900)))
	deaf := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) })
	}}
	h := w.rawHTTPBy(&deaf, w.with(west.cert()))
	if err := h.frame(frameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, 1<<30)); err != nil {
		t.Fatal(err)
	}
	account := w.accountOf("west")
	eventually(t, "the peer is in", func() bool { return account.conns.Load() == 1 })
	for _, c := range w.s.gateway.conns.which(func(*conn) bool { return true }) {
		_ = c.Conn.(*net.TCPConn).SetWriteBuffer(4 << 10) // or the kernel takes megabytes before anything is unread
	}
	ask, err := proto.Marshal(&pb.RangeRequest{Key: []byte("cilium/state/small")})
	if err != nil {
		t.Fatal(err)
	}
	ended, sent := make(chan struct{}), 0
	go func() {
		defer close(ended)
		for id := uint32(1); ; id += 2 {
			if h.frame(frameHeaders, flagEndHeaders, id, request(pb.KV_Range_FullMethodName)) != nil ||
				h.frame(frameData, flagEndStream, id, message(ask)) != nil {
				return
			}
			if sent++; sent%32 == 0 {
				for begin := time.Now(); account.streams.Load() > 0 && time.Since(begin) < time.Second; {
					time.Sleep(time.Millisecond) // until they are answered, or nothing is any more
				}
				for back := id - 62; back <= id; back += 2 {
					_ = h.frame(frameReset, 0, back, []byte{0, 0, 0, 8})
				}
			}
		}
	}()
	eventually(t, "the connection is cut", func() bool { return w.peerMetric("west", string(refusedUnread)) == 1 })
	<-ended
	t.Logf("%d requests before the end", sent)
	eventually(t, "nothing is kept", func() bool { return account.unread.n.Load() == 0 && account.conns.Load() == 0 })
	if _, err := pb.NewKVClient(w.dialAs(north)).Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
		t.Errorf("another peer is not served: %v", err)
	}
}
