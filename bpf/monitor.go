package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
)

// eventBytes is the size of the ring buffer of events.
const eventBytes = 1 << 18

// ErrMonitored says that another Monitor runs.
var ErrMonitored = errors.New("choices are being monitored already")

// Event is one choice of a backend, or a refusal for want of one.
type Event struct {
	// SinceBoot is when it was, on the monotonic clock.
	SinceBoot time.Duration
	// Netns is the cookie of the client's network namespace, 0 for a packet.
	Netns    uint64
	ID       uint32 // of the frontend
	Protocol uint8
	Frontend netip.AddrPort
	// Refused says that there was no usable backend; Backend is then not valid.
	Refused bool
	Backend netip.AddrPort
	Cluster uint16 // of the backend
}

// Monitor makes the programs report one of sampleEvery choices, picked at random,
// until ctx is done, and calls visit for each in turn from this goroutine. Events
// that come faster than visit takes them are dropped and counted. One Monitor
// runs at a time, a second one fails with ErrMonitored. It returns nil when ctx
// is done, and must have returned before Close.
func (d *Datapath) Monitor(ctx context.Context, sampleEvery uint32, visit func(Event)) error {
	if sampleEvery == 0 {
		return errors.New("monitor choices: sampleEvery must be at least 1")
	}
	if !d.monitoring.CompareAndSwap(false, true) {
		return ErrMonitored
	}
	defer d.monitoring.Store(false)
	r, err := ringbuf.NewReader(d.coll.Maps[clustermeshMapCmEvents])
	if err != nil {
		return fmt.Errorf("open the buffer of events: %w", err)
	}
	drop(r) // what a former life left
	sample := &d.settings.all[0].Sample
	atomic.StoreUint32(sample, sampleEvery)
	defer atomic.StoreUint32(sample, 0)
	stop := context.AfterFunc(ctx, func() { _ = r.Flush() }) // fails once r is closed
	defer stop()
	return errors.Join(readEvents(r, visit), r.Close())
}

// drop empties the buffer.
func drop(r *ringbuf.Reader) {
	var record ringbuf.Record
	r.SetDeadline(time.Unix(1, 0))
	for r.ReadInto(&record) == nil {
	}
	r.SetDeadline(time.Time{})
}

// readEvents reads until r is flushed, and then what is there still.
func readEvents(r *ringbuf.Reader, visit func(Event)) error {
	var record ringbuf.Record
	for {
		err := r.ReadInto(&record)
		if errors.Is(err, ringbuf.ErrFlushed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		if len(record.RawSample) < int(unsafe.Sizeof(clustermeshCmEvent{})) {
			return fmt.Errorf("read event: it has %d bytes only", len(record.RawSample))
		}
		visit(eventOf((*clustermeshCmEvent)(unsafe.Pointer(&record.RawSample[0]))))
	}
}

func eventOf(e *clustermeshCmEvent) Event {
	out := Event{
		SinceBoot: time.Duration(e.Time), Netns: e.Netns, ID: e.Id, Protocol: e.Proto,
		Frontend: endpoint(e.Frontend), Cluster: e.Cluster, Refused: e.Verdict != 0,
	}
	if !out.Refused {
		out.Backend = endpoint(e.Backend)
	}
	return out
}

// endpoint reads an address and a port as they are on the wire.
func endpoint(e clustermeshCmEndpoint) netip.AddrPort {
	addr := *(*[16]byte)(unsafe.Pointer(&e.Addr))
	port := *(*[2]byte)(unsafe.Pointer(&e.Port))
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), uint16(port[0])<<8|uint16(port[1]))
}
