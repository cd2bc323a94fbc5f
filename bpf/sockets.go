package bpf

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -target bpfel -go-package bpf -type cm_listed sockets sockets.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -I. -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// SocketsOptions say where the maps of the socket programs are pinned.
type SocketsOptions struct {
	// PinDir is that of [Options].
	PinDir string
	// ByNetlink ends sockets as on kernels whose programs cannot, which otherwise
	// is found out.
	ByNetlink bool
	// Log receives warnings; nil discards.
	Log *slog.Logger
}

// Sockets sees and ends the sockets that the programs of a [Datapath] have
// translated, whichever process or network namespace of the node they are of. It
// needs the maps that a Datapath has made, and CAP_BPF, CAP_PERFMON,
// CAP_NET_ADMIN and CAP_SYS_ADMIN for as long as it works. Its methods are for
// one goroutine at a time.
type Sockets struct {
	log   *slog.Logger
	dir   string
	coll  *ebpf.Collection
	iters map[string]*link.Iter // by program; none of those that end sockets if netlink does
	view  Datapath              // to read sets of backends with
	sums  *window[socketsCmSweeps]
}

// Pair is a backend that a frontend's clients were sent to.
type Pair struct {
	Protocol uint8
	Frontend netip.AddrPort
	Backend  netip.AddrPort
}

// Socket is one that connect() sent to a backend. ID is the number that the
// frontend has now, 0 if there is no such frontend any more.
type Socket struct {
	Cookie uint64
	ID     uint32
	Pair
}

// LoadSockets loads the programs on the pinned maps and attaches nothing. It
// fails with an error that wraps [os.ErrNotExist] while a Datapath has not made
// the maps.
func LoadSockets(opts SocketsOptions) (*Sockets, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Sockets{log: opts.Log, dir: filepath.Clean(opts.PinDir), iters: map[string]*link.Iter{}}
	if err := s.open(opts.ByNetlink); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sockets) open(byNetlink bool) error {
	if err := checkPinnedLayout(s.dir); err != nil {
		return err
	}
	err := s.load(byNetlink)
	if err != nil && !byNetlink && !errors.Is(err, os.ErrNotExist) && s.load(true) == nil { // Linux before 6.5
		s.log.Info("ending sockets by netlink, since programs cannot", "err", err)
		err = nil
	}
	if err != nil {
		return err
	}
	return errors.Join(s.attach(), s.mapMemory())
}

func socketsSpec(byNetlink bool) (*ebpf.CollectionSpec, error) {
	spec, err := loadSockets()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	if byNetlink {
		delete(spec.Programs, "cm_end_tcp")
		delete(spec.Programs, "cm_end_udp")
	}
	if haveExchange() != nil { // then the slots are empty
		delete(spec.Programs, "cm_list_slots")
	}
	return spec, nil
}

func (s *Sockets) load(byNetlink bool) error {
	spec, err := socketsSpec(byNetlink)
	if err != nil {
		return err
	}
	for name, m := range spec.Maps {
		if isData(name) || name == socketsMapCmCondemned {
			continue
		}
		m.Pinning = ebpf.PinByName
		if name == socketsMapCmGone {
			continue
		}
		if m.MaxEntries, err = sizeOfPin(s.dir, name); err != nil {
			return err
		}
	}
	s.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: s.dir}})
	if err != nil {
		return fmt.Errorf("load the programs that list and end sockets: %w", err)
	}
	return nil
}

func sizeOfPin(dir, name string) (uint32, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
	if err != nil {
		return 0, fmt.Errorf("open pinned map %s: %w; the socket programs have to be loaded first", name, err)
	}
	defer m.Close()
	return m.MaxEntries(), nil
}

func checkPinnedLayout(dir string) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, socketsMapCmInfo), nil)
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", socketsMapCmInfo, err)
	}
	defer m.Close()
	return checkInfo(m, dir)
}

// attach makes the iterators. That costs nothing until one is opened.
func (s *Sockets) attach() error {
	over := map[string]*ebpf.Map{
		"cm_list_slots": s.coll.Maps[socketsMapCmTcpSlots], "cm_list_tcp": s.coll.Maps[socketsMapCmTcpPeers],
		"cm_list_stored": s.coll.Maps[socketsMapCmPeers],
	}
	for name, p := range s.coll.Programs {
		it, err := link.AttachIter(link.IterOptions{Program: p, Map: over[name]})
		if err != nil {
			return fmt.Errorf("attach iterator %s: %w", name, err)
		}
		s.iters[name] = it
	}
	return nil
}

func (s *Sockets) mapMemory() (err error) {
	if s.view.headers, err = openWindow[uint64](s.coll.Maps[socketsMapCmHeaders]); err == nil {
		s.view.slab, err = openWindow[layout.Backend](s.coll.Maps[socketsMapCmSlab])
	}
	if err == nil {
		s.sums, err = openWindow[socketsCmSweeps](s.coll.Maps[socketsMapCmSweeps])
	}
	if err != nil {
		return fmt.Errorf("map memory: %w", err)
	}
	s.view.headers.upTo(uint64(len(s.view.headers.all)))
	s.sums.upTo(1)
	return nil
}

// Current is that of [Packet].
func (s *Sockets) Current() error {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(s.dir, socketsMapCmHeaders), nil)
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", socketsMapCmHeaders, err)
	}
	defer pinned.Close()
	if a, b := mapID(pinned), mapID(s.coll.Maps[socketsMapCmHeaders]); a != b {
		return fmt.Errorf("look at the pins in %q: the maps were made anew, as number %d instead of %d; start again to load the programs on them", s.dir, a, b)
	}
	return nil
}

// Close closes everything. What Remember kept stays.
func (s *Sockets) Close() error {
	var errs []error
	for _, it := range s.iters {
		errs = append(errs, it.Close())
	}
	errs = append(errs, s.view.headers.close(), s.view.slab.close(), s.sums.close())
	if s.coll != nil {
		s.coll.Close()
	}
	s.iters, s.coll = nil, nil
	return errors.Join(errs...)
}

// List returns the sockets that are connected to a backend now: TCP ones from
// their connect() until they are closed, UDP ones until they are connected
// elsewhere or ended.
func (s *Sockets) List() ([]Socket, error) {
	var all []Socket
	for _, name := range []string{"cm_list_slots", "cm_list_tcp", "cm_list_stored"} {
		it := s.iters[name]
		if it == nil { // no slots on this kernel
			continue
		}
		raw, err := read(it)
		if err != nil {
			return nil, fmt.Errorf("list sockets by %s: %w", name, err)
		}
		const size = unsafe.Sizeof(socketsCmListed{})
		for ; len(raw) >= int(size); raw = raw[size:] {
			l := (*socketsCmListed)(unsafe.Pointer(&raw[0]))
			all = append(all, Socket{Cookie: l.Cookie, ID: l.Id, Pair: Pair{
				Protocol: l.Proto, Frontend: socketsEndpoint(l.Peer.Frontend), Backend: socketsEndpoint(l.Peer.Backend),
			}})
		}
	}
	return all, nil
}

func socketsEndpoint(e socketsCmEndpoint) netip.AddrPort { return endpoint(clustermeshCmEndpoint(e)) }

// read runs an iterator, in the network namespace of this thread if it has one.
func read(it *link.Iter) ([]byte, error) {
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(r)
	return raw, errors.Join(err, r.Close())
}

// Generation is a number that differs after any change of any frontend or set.
func (s *Sockets) Generation() uint64 {
	const prime = 1099511628211 // FNV-1a over words
	sum := uint64(14695981039346656037)
	for i := range s.view.headers.all {
		sum = (sum ^ atomic.LoadUint64(&s.view.headers.all[i])) * prime
	}
	return sum
}

// Set returns the region of a frontend and all its backends as they are at one
// moment, false if it has none now.
func (s *Sockets) Set(id uint32) (layout.Region, []layout.Backend, bool) {
	if int64(id) >= int64(len(s.view.headers.all)) {
		return layout.Region{}, nil, false
	}
	for range 1000 {
		f := layout.DumpFrontend{ID: id, Header: layout.Header(atomic.LoadUint64(&s.view.headers.all[id]))}
		s.view.dumpRegion(&f)
		// A region is not written while a header names it.
		if layout.Header(atomic.LoadUint64(&s.view.headers.all[id])) == f.Header {
			return f.Region, f.Backends, f.Region.Frontend == id && id != 0
		}
	}
	return layout.Region{}, nil, false
}

// Remembered returns since when, on the clock of [Monotonic], which pairs have
// been withdrawn, as Remember was told by this process or an earlier one.
func (s *Sockets) Remembered() (map[Pair]time.Duration, error) {
	out := map[Pair]time.Duration{}
	var key socketsCmPair
	var ms uint64
	all := s.coll.Maps[socketsMapCmGone].Iterate()
	for all.Next(&key, &ms) {
		out[Pair{uint8(key.Proto), socketsEndpoint(key.Peer.Frontend), socketsEndpoint(key.Peer.Backend)}] = time.Duration(ms) * time.Millisecond
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read which backends are withdrawn: %w", err)
	}
	return out, nil
}

// Remember keeps since when a pair has been withdrawn, Forget takes it out again.
func (s *Sockets) Remember(p Pair, since time.Duration) error {
	key, ms := pairKey(p), uint64(since.Milliseconds())
	if err := s.coll.Maps[socketsMapCmGone].Put(&key, &ms); err != nil {
		return fmt.Errorf("remember that %s is withdrawn from %s: %w", p.Backend, p.Frontend, err)
	}
	return nil
}

// Forget is the opposite of Remember. A pair that is not there is no error.
func (s *Sockets) Forget(p Pair) error {
	key := pairKey(p)
	if err := s.coll.Maps[socketsMapCmGone].Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget that %s is withdrawn from %s: %w", p.Backend, p.Frontend, err)
	}
	return nil
}

func pairKey(p Pair) socketsCmPair {
	return socketsCmPair{
		Peer:  socketsCmPeer{Frontend: socketsAddress(p.Frontend), Backend: socketsAddress(p.Backend)},
		Proto: uint32(p.Protocol),
	}
}

// socketsAddress is the inverse of endpoint.
func socketsAddress(a netip.AddrPort) (e socketsCmEndpoint) {
	e.Addr = words(a.Addr().As16())
	*(*[2]byte)(unsafe.Pointer(&e.Port)) = [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	return e
}

// Monotonic is the time since some moment before which nothing of this node was.
func Monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // it has always been there
	}
	return time.Duration(now.Nano())
}
