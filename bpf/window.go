package bpf

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// window is an array map as memory. Its address range is reserved as a whole,
// but only the records from 0 up to the highest that was asked for are mapped:
// the kernel counts every mapped page of a map as this process's memory, used
// or not, and the maps are sized for the largest node.
type window[T any] struct {
	all    []T
	fd     int
	raw    unsafe.Pointer
	size   uintptr // of the reservation
	mapped uintptr
}

// windowStep is how much more is mapped at a time.
const windowStep = 256 << 10

// openWindow reserves the range of a map; nothing of it is accessible yet.
func openWindow[T any](m *ebpf.Map) (*window[T], error) {
	record := unsafe.Sizeof(*new(T))
	if uintptr(m.ValueSize()) != record || record%8 != 0 {
		return nil, fmt.Errorf("record has %d bytes in the kernel, %d here", m.ValueSize(), record)
	}
	page := uintptr(os.Getpagesize())
	size := (uintptr(m.MaxEntries())*record + page - 1) / page * page
	raw, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	return &window[T]{all: unsafe.Slice((*T)(raw), m.MaxEntries()), fd: m.FD(), raw: raw, size: size}, nil
}

// upTo makes records 0 to n-1 accessible and returns them. It panics if n is
// beyond the map, or if the kernel has no room for another mapping, which
// leaves an agent nothing it could do; what the maps hold stays in force.
func (w *window[T]) upTo(n uint64) []T {
	records := w.all[:n]
	need := uintptr(n) * unsafe.Sizeof(*new(T))
	if need > w.mapped {
		end := min((need+windowStep-1)/windowStep*windowStep, w.size)
		_, err := unix.MmapPtr(w.fd, int64(w.mapped), unsafe.Add(w.raw, w.mapped), end-w.mapped, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
		if err != nil {
			panic(fmt.Sprintf("map %d more bytes of an eBPF map: %v", end-w.mapped, err))
		}
		w.mapped = end
	}
	return records
}

func (w *window[T]) close() error {
	if w == nil {
		return nil
	}
	w.all = nil
	return unix.MunmapPtr(w.raw, w.size)
}
