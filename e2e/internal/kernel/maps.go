package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
)

// Maps is a node's pinned maps, headers and slab mapped into memory. Its
// methods are safe for concurrent use, Close apart.
type Maps struct {
	frontends *ebpf.Map
	headers   []uint64
	slab      []layout.Backend
	meta      *ebpf.Map
	names     map[uint16]string
	unmap     []func() error
}

// Open opens the maps pinned in dir. names are the cluster names by id.
func Open(dir string, names map[uint16]string) (*Maps, error) {
	m := &Maps{names: names}
	if err := m.open(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open pinned maps of %s: %w", dir, err), m.Close())
	}
	return m, nil
}

func (m *Maps) open(dir string) (err error) {
	if m.frontends, err = ebpf.LoadPinnedMap(filepath.Join(dir, "cm_frontends"), nil); err != nil {
		return err
	}
	if m.meta, err = ebpf.LoadPinnedMap(filepath.Join(dir, "cm_meta"), nil); err != nil {
		return err
	}
	headers, err := m.memory(filepath.Join(dir, "cm_headers"))
	if err != nil {
		return err
	}
	m.headers = unsafe.Slice((*uint64)(unsafe.Pointer(&headers[0])), len(headers)/8)
	slab, err := m.memory(filepath.Join(dir, "cm_slab"))
	if err != nil {
		return err
	}
	size := int(unsafe.Sizeof(layout.Backend{}))
	m.slab = unsafe.Slice((*layout.Backend)(unsafe.Pointer(&slab[0])), len(slab)/size)
	return nil
}

// memory maps an array's values into memory, read-only.
func (m *Maps) memory(pin string) ([]byte, error) {
	array, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return nil, err
	}
	defer array.Close()
	size := (int(array.MaxEntries())*int(array.ValueSize()) + 4095) &^ 4095
	bytes, err := unix.Mmap(array.FD(), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", pin, err)
	}
	m.unmap = append(m.unmap, func() error { return unix.Munmap(bytes) })
	return bytes[:int(array.MaxEntries())*int(array.ValueSize())], nil
}

// Close gives the maps back; they stay pinned.
func (m *Maps) Close() error {
	var errs []error
	for _, unmap := range m.unmap {
		errs = append(errs, unmap())
	}
	for _, opened := range []*ebpf.Map{m.frontends, m.meta} {
		if opened != nil {
			errs = append(errs, opened.Close())
		}
	}
	return errors.Join(errs...)
}

// Key is the map key of a frontend.
func Key(f oracle.Frontend) layout.FrontendKey {
	k := layout.FrontendKey{Addr: f.Addr.Addr().As16(), Proto: protocols[f.Protocol], Scope: scopes[f.Clients]}
	k.Port = [2]byte{byte(f.Addr.Port() >> 8), byte(f.Addr.Port())}
	return k
}

var protocols = map[string]uint8{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "SCTP": unix.IPPROTO_SCTP}

var scopes = map[string]uint8{"": layout.ScopeAny, "outside": layout.ScopeOutside, "host": layout.ScopeHost}

// Lookup finds a frontend's number.
func (m *Maps) Lookup(f oracle.Frontend) (uint32, error) {
	key, id := Key(f), uint32(0)
	err := m.frontends.Lookup(&key, &id)
	return id, err
}

// Backends reads the addresses of the selected backends of a frontend's number,
// as the programs would. It does not allocate when buffer is large enough.
func (m *Maps) Backends(id uint32, buffer []netip.AddrPort) []netip.AddrPort {
	for {
		header := layout.Header(atomic.LoadUint64(&m.headers[id]))
		buffer = buffer[:0]
		for i := range uint32(header.Selected()) {
			buffer = append(buffer, address(m.slab[header.Offset()+i]))
		}
		if layout.Header(atomic.LoadUint64(&m.headers[id])) == header {
			return buffer
		}
	}
}

func address(b layout.Backend) netip.AddrPort {
	port := uint16(b.Port[0])<<8 | uint16(b.Port[1])
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), port)
}

// Table reads everything the maps hold. While an agent writes, the frontends
// may be of different moments, each by itself is whole.
func (m *Maps) Table() (oracle.Table, error) {
	table := oracle.Table{}
	var key layout.FrontendKey
	var id uint32
	all := m.frontends.Iterate()
	for all.Next(&key, &id) {
		entry, err := m.entry(id)
		if err != nil {
			return nil, err
		}
		table[frontend(key)] = entry
	}
	return table, all.Err()
}

// Headers is the header word of every frontend as sorted text: equal texts
// mean that not one entry was published anew in between.
func (m *Maps) Headers() (string, error) {
	var lines []string
	var key layout.FrontendKey
	var id uint32
	all := m.frontends.Iterate()
	for all.Next(&key, &id) {
		f := frontend(key)
		lines = append(lines, fmt.Sprintf("%s=%d:%x", f, id, atomic.LoadUint64(&m.headers[id])))
	}
	slices.Sort(lines)
	return strings.Join(lines, " "), all.Err()
}

func frontend(k layout.FrontendKey) oracle.Frontend {
	f := oracle.Frontend{Addr: address(layout.Backend{Addr: k.Addr, Port: k.Port})}
	for name, number := range protocols {
		if number == k.Proto {
			f.Protocol = name
		}
	}
	for name, number := range scopes {
		if number == k.Scope {
			f.Clients = name
		}
	}
	return f
}

func (m *Maps) entry(id uint32) (oracle.Entry, error) {
	var meta layout.Meta
	if err := m.meta.Lookup(&id, &meta); err != nil {
		return oracle.Entry{}, fmt.Errorf("read meta record %d: %w", id, err)
	}
	service := text(meta.Namespace[:]) + "/" + text(meta.Name[:])
	for {
		header := layout.Header(atomic.LoadUint64(&m.headers[id]))
		entry, err := m.region(header, id)
		if layout.Header(atomic.LoadUint64(&m.headers[id])) == header {
			entry.Service = service
			return entry, err
		}
	}
}

func text(padded []byte) string { return strings.TrimRight(string(padded), "\x00") }

var affinities = []string{"none", "local", "remote"}

func (m *Maps) region(h layout.Header, id uint32) (oracle.Entry, error) {
	e := oracle.Entry{Selected: map[oracle.Backend]bool{}, Others: map[oracle.Backend]bool{}}
	if h.Offset() == 0 {
		return e, nil
	}
	head := *(*layout.Region)(unsafe.Pointer(&m.slab[h.Offset()-1]))
	if head.Frontend != id || uint32(h.Selected()) > head.Total || int(head.Affinity) >= len(affinities) {
		return e, fmt.Errorf("region at %d of frontend %d is damaged: %+v with header %+v", h.Offset(), id, head, h)
	}
	e.Affinity = affinities[head.Affinity]
	for i := range head.Total {
		b := m.slab[h.Offset()+i]
		if b.Frontend != id {
			return e, fmt.Errorf("record %d of frontend %d belongs to %d", h.Offset()+i, id, b.Frontend)
		}
		backend := m.backend(b)
		if e.Selected[backend] || e.Others[backend] {
			return e, fmt.Errorf("frontend %d holds %+v twice", id, backend)
		}
		if i < uint32(h.Selected()) {
			e.Selected[backend] = true
		} else {
			e.Others[backend] = true
		}
	}
	return e, nil
}

var states = map[uint8]string{layout.StateActive: "active", layout.StateTerminating: "terminating", layout.StateNotReady: "not-ready"}

func (m *Maps) backend(b layout.Backend) oracle.Backend {
	return oracle.Backend{Addr: address(b), Cluster: m.names[b.Cluster], State: states[b.State]}
}
