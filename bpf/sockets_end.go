package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// endAtOnce is how many sockets one call of End can end.
const endAtOnce = 65536

// Namespace is an open file of a network namespace, and its name for messages.
type Namespace struct {
	Name string
	File *os.File
}

// End ends those of the sockets that are found in these network namespaces and
// still are connected to their backends, and returns them: TCP peers get a reset,
// and the socket's owner ECONNABORTED where it waits or next asks; sending on a UDP
// socket then fails for want of a destination. Sockets beyond the first 65,536 are for another call.
func (s *Sockets) End(sockets []Socket, in []Namespace) ([]Socket, error) {
	h := hunt{s: s, want: map[uint64]Socket{}}
	for _, one := range sockets[:min(len(sockets), endAtOnce)] {
		h.want[one.Cookie] = one
	}
	if err := h.condemn(); err != nil {
		return nil, errors.Join(err, h.pardon())
	}
	err := errors.Join(h.roam(in), h.pardon())
	var forgotten []uint64
	for _, one := range h.ended {
		if one.Protocol == unix.IPPROTO_TCP {
			forgotten = append(forgotten, one.Cookie)
		}
	}
	s.count(h.ended)
	return h.ended, errors.Join(err, s.forget(forgotten))
}

// hunt is one call of End.
type hunt struct {
	s     *Sockets
	want  map[uint64]Socket // what is still to be found
	all   []uint64
	ended []Socket
}

func (h *hunt) condemn() error {
	for cookie, one := range h.want {
		e := socketsAddress(one.Backend)
		if err := h.s.coll.Maps[socketsMapCmCondemned].Put(&cookie, &e); err != nil {
			return fmt.Errorf("condemn socket: %w", err)
		}
		h.all = append(h.all, cookie)
	}
	return nil
}

func (h *hunt) pardon() error {
	var errs []error
	for _, cookie := range h.all {
		errs = append(errs, deleteKey(h.s.coll.Maps[socketsMapCmCondemned], cookie))
	}
	return errors.Join(errs...)
}

func deleteKey(m *ebpf.Map, key uint64) error {
	if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete socket %d: %w", key, err)
	}
	return nil
}

// roam visits the namespaces on a thread of its own, which is given back where it
// was. Were it merely left to end, it could be the main thread, which cannot: what
// /proc/self says would then be of another namespace.
func (h *hunt) roam(in []Namespace) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		err = h.visit(in)
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil { // the thread is of no use to others
			err = errors.Join(err, fmt.Errorf("return to own network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, own.Close())
	}()
	return <-done
}

// visit goes from namespace to namespace until all is found. One that cannot be
// entered does not keep it from the others.
func (h *hunt) visit(in []Namespace) error {
	var errs []error
	for _, ns := range in {
		if len(h.want) == 0 {
			break
		}
		if err := unix.Setns(int(ns.File.Fd()), unix.CLONE_NEWNET); err != nil {
			errs = append(errs, fmt.Errorf("enter network namespace %s: %w", ns.Name, err))
			continue
		}
		if err := h.endHere(); err != nil {
			errs = append(errs, fmt.Errorf("end sockets in network namespace %s: %w", ns.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (h *hunt) endHere() error {
	var protocols [2]bool // TCP, UDP
	for _, one := range h.want {
		protocols[0] = protocols[0] || one.Protocol == unix.IPPROTO_TCP
		protocols[1] = protocols[1] || one.Protocol == unix.IPPROTO_UDP
	}
	var errs []error
	if protocols[0] {
		errs = append(errs, h.endProtocol("cm_end_tcp", unix.IPPROTO_TCP, netlink.SocketDiagTCP))
	}
	if protocols[1] {
		errs = append(errs, h.endProtocol("cm_end_udp", unix.IPPROTO_UDP, netlink.SocketDiagUDP))
	}
	return errors.Join(errs...)
}

func (h *hunt) endProtocol(program string, protocol uint8, list func(family uint8) ([]*netlink.Socket, error)) error {
	it := h.s.iters[program]
	if it == nil {
		return h.endByNetlink(protocol, list)
	}
	raw, err := read(it)
	for ; len(raw) >= 8; raw = raw[8:] {
		h.found(binary.NativeEndian.Uint64(raw))
	}
	return err
}

func (h *hunt) found(cookie uint64) {
	if one, ok := h.want[cookie]; ok {
		h.ended = append(h.ended, one)
		delete(h.want, cookie)
	}
}

// endByNetlink asks for the sockets of a protocol and for the end of those that
// are wanted, by the same cookie, which the kernel compares again.
func (h *hunt) endByNetlink(protocol uint8, list func(family uint8) ([]*netlink.Socket, error)) error {
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := list(family)
		errs = append(errs, err)
		for _, sk := range sockets {
			cookie := uint64(sk.ID.Cookie[1])<<32 | uint64(sk.ID.Cookie[0])
			if one, ok := h.want[cookie]; !ok || one.Protocol != protocol || !leadsTo(sk, one.Backend) || !endable(sk, protocol) {
				continue
			}
			if err := destroy(sk, protocol); err == nil {
				h.found(cookie)
			} else if !errors.Is(err, unix.ENOENT) { // it went by itself
				errs = append(errs, fmt.Errorf("end socket: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// States of sockets, as the kernel numbers them for both protocols.
const (
	stateEstablished = 1
	stateTimeWait    = 6
	stateClose       = 7
	stateListen      = 10
	stateNewSynRecv  = 12
)

func endable(sk *netlink.Socket, protocol uint8) bool {
	if protocol == unix.IPPROTO_UDP {
		return sk.State == stateEstablished
	}
	return sk.State != stateTimeWait && sk.State != stateClose && sk.State != stateListen && sk.State != stateNewSynRecv
}

func leadsTo(sk *netlink.Socket, backend netip.AddrPort) bool {
	a, ok := netip.AddrFromSlice(sk.ID.Destination)
	return ok && a.Unmap() == backend.Addr() && sk.ID.DestinationPort == backend.Port()
}

// destroy sends struct inet_diag_req_v2 of linux/inet_diag.h.
func destroy(sk *netlink.Socket, protocol uint8) error {
	req := make([]byte, 0, 56)
	req = append(req, sk.Family, protocol, 0, 0)
	req = binary.NativeEndian.AppendUint32(req, 1<<sk.State)
	req = binary.BigEndian.AppendUint16(req, sk.ID.SourcePort)
	req = binary.BigEndian.AppendUint16(req, sk.ID.DestinationPort)
	req = append(append(req, diagAddress(sk.ID.Source, sk.Family)...), diagAddress(sk.ID.Destination, sk.Family)...)
	for _, word := range []uint32{sk.ID.Interface, sk.ID.Cookie[0], sk.ID.Cookie[1]} {
		req = binary.NativeEndian.AppendUint32(req, word)
	}
	return diagDestroy(req)
}

// diagDestroy runs one SOCK_DESTROY in this thread's network namespace.
func diagDestroy(request []byte) error {
	msg := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	msg.AddRawData(request)
	_, err := msg.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

// diagAddress is an address in 16 bytes, IPv4 ones in the first four.
func diagAddress(ip net.IP, family uint8) []byte {
	out := make([]byte, 16)
	if family == unix.AF_INET {
		copy(out, ip.To4())
	} else {
		copy(out, ip.To16())
	}
	return out
}

// Sweeps say what the process that ends connections has done since the maps were
// made. Any goroutine may call Datapath.Sweeps.
type Sweeps struct {
	// Looked is when it last said that it is up to date, on the clock of
	// [Monotonic], 0 for never.
	Looked time.Duration
	// TCP and UDP are the sockets that it ended; Missed those that should have
	// been and were in no network namespace that it can see, each time again.
	TCP, UDP, Missed uint64
}

// Sweeps reads them.
func (d *Datapath) Sweeps() Sweeps {
	all := &d.sweeps.all[0]
	return Sweeps{
		Looked: time.Duration(atomic.LoadUint64(&all.Looked)),
		TCP:    atomic.LoadUint64(&all.Tcp), UDP: atomic.LoadUint64(&all.Udp), Missed: atomic.LoadUint64(&all.Missed),
	}
}

// Looked tells the agent that the process is up to date now, and how many sockets
// that should end it found nowhere since it last said so.
func (s *Sockets) Looked(missed int) {
	atomic.AddUint64(&s.sums.all[0].Missed, uint64(missed))
	atomic.StoreUint64(&s.sums.all[0].Looked, uint64(Monotonic()))
}

func (s *Sockets) count(ended []Socket) {
	for _, one := range ended {
		if one.Protocol == unix.IPPROTO_TCP {
			atomic.AddUint64(&s.sums.all[0].Tcp, 1)
		} else {
			atomic.AddUint64(&s.sums.all[0].Udp, 1)
		}
	}
}

// endingSockets says whether sockets can be listed and ended here, by programs or
// by netlink: trying is the only way to find out.
func endingSockets() error {
	if tryPrograms(false) == nil {
		return nil
	}
	if err := tryPrograms(true); err != nil {
		return err
	}
	request := make([]byte, 56)
	request[0], request[1] = unix.AF_INET, unix.IPPROTO_TCP
	if err := diagDestroy(request); !errors.Is(err, unix.ENOENT) { // what it says of a socket that is not there
		return fmt.Errorf("end sockets by netlink: %w", err)
	}
	return nil
}

// tryPrograms loads the programs with maps of their own.
func tryPrograms(byNetlink bool) error {
	spec, err := socketsSpec(byNetlink)
	if err != nil {
		return err
	}
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool {
		return !isData(name) && name != socketsMapCmFrontends && name != socketsMapCmCondemned
	})
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	coll.Close()
	return nil
}
