package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// rollState is a service on the board, which is memory that the processes of a
// roll share: the newest change that may be in force, and the newest one that was
// published, before which nothing is in force any more. It outlives a kill.
type rollState struct{ begun, done atomic.Uint32 }

const rollStateSize = int(unsafe.Sizeof(rollState{}))

func openBoard(path string) ([]rollState, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*rollState)(unsafe.Pointer(&b[0])), len(b)/rollStateSize), nil
}

func boardBytes(b []rollState) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&b[0])), len(b)*rollStateSize)
}

// boardSum grows by one with every change.
func boardSum(b []rollState) (sum int) {
	for i := range b {
		sum += int(b[i].begun.Load())
	}
	return sum
}

// rollServers answer at every address of the loopback device with that address.
func (r *rolling) rollServers() {
	r.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<22))
		}), err)
	}}
	everywhere := fmt.Sprintf("0.0.0.0:%d", rollPort)
	packets, err := config.ListenPacket(context.Background(), "udp4", everywhere)
	if err != nil {
		r.Fatal(err)
	}
	c := packets.(*net.UDPConn)
	r.serve(c, func() bool { return rollAnswer(c) })
	l, err := net.Listen("tcp4", everywhere)
	if err != nil {
		r.Fatal(err)
	}
	r.serve(l, func() bool {
		c, err := l.Accept()
		if err == nil {
			go rollConverse(c)
		}
		return err == nil
	})
}

// rollAnswer answers one datagram, from the address that it was sent to.
func rollAnswer(c *net.UDPConn) bool {
	var text [16]byte
	var control [64]byte
	_, n, _, from, err := c.ReadMsgUDPAddrPort(text[:], control[:])
	if err != nil {
		return false
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return true // and the client reports that it got no answer
	}
	info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&messages[0].Data[0]))
	_, _, _ = c.WriteMsgUDPAddrPort(info.Addr[:], unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: info.Addr}), from)
	return true
}

// rollConverse ends when the client does.
func rollConverse(c net.Conn) {
	defer c.Close()
	own := c.LocalAddr().(*net.TCPAddr).IP.To4()
	for {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return
		}
		if _, err := c.Write(own); err != nil {
			return
		}
	}
}

// rollReport is what clients saw. Counts are how often the backend of that age was
// chosen, by group of services, where exactly one set was in force.
type rollReport struct {
	Connects, Again         int
	Removed, Foreign, Moved int
	Failures                map[string]int
	Counts                  [50][rollBackends]int
}

func (s *rollReport) add(o *rollReport) {
	s.Connects += o.Connects
	s.Again += o.Again
	s.Removed += o.Removed
	s.Foreign += o.Foreign
	s.Moved += o.Moved
	for text, n := range o.Failures {
		s.Failures[text] += n
	}
	for i := range s.Counts {
		for j := range s.Counts[i] {
			s.Counts[i][j] += o.Counts[i][j]
		}
	}
}

// So many clients connect in turns of their own, and hold so many sockets open.
const (
	rollClients = 8
	rollHeld    = 2000
)

func readRolls(b []rollState, ended <-chan struct{}) *rollReport {
	sum := &rollReport{Failures: map[string]int{}}
	var lock sync.Mutex
	var clients sync.WaitGroup
	for i := range rollClients {
		clients.Go(func() {
			c := &rollClient{board: b, random: rand.New(rand.NewPCG(7, uint64(i))), seen: rollReport{Failures: map[string]int{}}}
			c.run(ended)
			lock.Lock()
			defer lock.Unlock()
			sum.add(&c.seen)
		})
	}
	clients.Wait()
	return sum
}

type rollClient struct {
	board  []rollState
	random *rand.Rand
	seen   rollReport
	held   []rollSocket // the oldest first
}

// rollSocket is connected, and knows the backend that answered at first.
type rollSocket struct {
	clientSocket
	backend [4]byte
}

func (c *rollClient) run(ended <-chan struct{}) {
	defer func() {
		for _, s := range c.held {
			c.again(s)
		}
	}()
	for pace := newPace(rollConnects / rollClients); ; {
		select {
		case <-ended:
			return
		default:
		}
		pace.await()
		if err := c.connect(uint32(c.random.IntN(len(c.board)))); err != nil {
			c.seen.Failures[err.Error()]++
		}
		if len(c.held) > rollHeld/rollClients {
			c.again(c.held[0])
			c.held = c.held[1:]
		}
	}
}

// again uses a held socket once more and closes it.
func (c *rollClient) again(s rollSocket) {
	defer unix.Close(s.fd)
	now, err := s.talk()
	if err != nil {
		c.seen.Failures["held: "+err.Error()]++
	} else if now != s.backend {
		c.seen.Moved++
	}
	c.seen.Again++
}

func (c *rollClient) connect(service uint32) error {
	t := rollTable(service, 0)
	kind := "4 udp"
	if t.Frontend.Protocol == lb.TCP {
		kind = "4 tcp"
	}
	socket, err := openSocket(kind)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	c.seen.Connects++
	state := &c.board[service]
	oldest := state.done.Load()
	err = eintr(func() error { return unix.Connect(socket.fd, socket.sockaddr(t.Frontend.Addr.String())) })
	newest := state.begun.Load()
	s := rollSocket{clientSocket: socket}
	if err == nil {
		s.backend, err = s.talk()
	}
	if err != nil {
		return errors.Join(err, unix.Close(s.fd))
	}
	c.held = append(c.held, s)
	c.judge(service, oldest, newest, s.backend)
	return nil
}

func (c *rollClient) judge(service, oldest, newest uint32, backend [4]byte) {
	of, k := rollParse(backend[:])
	switch {
	case of != service || k > newest:
		c.seen.Foreign++
	case k+rollBackends <= oldest:
		c.seen.Removed++
	case oldest == newest:
		c.seen.Counts[service%50][newest-k]++
	}
}

// talk returns the address that the server says it was reached at.
func (s rollSocket) talk() (at [4]byte, err error) {
	err = eintr(func() error { _, err := unix.Write(s.fd, []byte("?")); return err })
	if err != nil {
		return at, fmt.Errorf("write: %w", err)
	}
	err = eintr(func() error {
		n, err := unix.Read(s.fd, at[:])
		if err == nil && n != len(at) {
			return io.ErrUnexpectedEOF
		}
		return err
	})
	if err != nil {
		return at, fmt.Errorf("read: %w", err)
	}
	return at, nil
}

// eintr repeats what a signal interrupted.
func eintr(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
