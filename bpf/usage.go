package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
)

// Usage is how full a map is that programs fill. Those that forget what was used
// least recently are full sooner or later, and stay so.
type Usage struct {
	Map      string // the name of its pin
	Entries  uint32
	Capacity uint32
	Age      time.Duration // since they were counted
	WhenFull string        // what becomes of one more, as half a sentence
}

const (
	// usagePause is how long a count is good for. Counting copies all entries:
	// 70 ms of one processor for the 262,144 flows of a full map of the default
	// size (BenchmarkCountEntries). The kernel's own counts cannot be read by a
	// process without privileges, and programs cannot keep them: what the kernel
	// forgets to make room they do not see.
	usagePause = time.Minute
	// usageLimit is how long what another process counted is believed.
	usageLimit = 3 * usagePause
)

// whenFull says what becomes of one more entry.
func whenFull() map[string]string {
	return map[string]string{
		clustermeshMapCmAffinity: "clients with session affinity that were away longest are forgotten",
		clustermeshMapCmReverse:  "unconnected UDP sockets that asked longest ago see the backend's address",
		clustermeshMapCmTcpPeers: "sockets are remembered in memory of their own, which is slower",
		packetMapCmFlows:         "connections that were idle longest are forgotten",
		packetMapCmFragments:     "datagrams whose pieces are late are dropped",
		packetMapCmDevices:       "no more devices are served",
	}
}

// toldMaps are those whose counts come from the process of the devices, by their
// places in cm_usage.
func toldMaps() []string {
	return []string{packetMapCmFlows, packetMapCmFragments, packetMapCmDevices}
}

// census remembers the last count.
type census struct {
	mu  sync.Mutex
	at  time.Duration // by the monotonic clock, 0 before the first
	all []Usage
}

// Usage counts the entries of the maps that fill up, at most every minute,
// and adds what clustermesh-agent devices last counted, if it runs. Any goroutine
// may call it.
func (d *Datapath) Usage() ([]Usage, error) {
	d.census.mu.Lock()
	defer d.census.mu.Unlock()
	now := Monotonic()
	if d.census.at == 0 || now-d.census.at >= usagePause {
		all := []Usage{}
		for _, name := range []string{clustermeshMapCmAffinity, clustermeshMapCmReverse, clustermeshMapCmTcpPeers} {
			m := d.coll.Maps[name]
			n, err := countEntries(m)
			if err != nil {
				return nil, fmt.Errorf("count entries of %s: %w", name, err)
			}
			all = append(all, Usage{Map: name, Entries: n, Capacity: m.MaxEntries(), WhenFull: whenFull()[name]})
		}
		d.census.at, d.census.all = now, all
	}
	out := []Usage{}
	for _, u := range d.census.all {
		u.Age = now - d.census.at
		out = append(out, u)
	}
	return append(out, d.told(now)...), nil
}

// told is what the process of the devices counted lately.
func (d *Datapath) told(now time.Duration) (out []Usage) {
	for i, name := range toldMaps() {
		u := &d.usage.all[i]
		counted := time.Duration(atomic.LoadUint64(&u.Counted))
		if counted != 0 && now-counted < usageLimit {
			out = append(out, Usage{
				Map: name, Entries: atomic.LoadUint32(&u.Entries), Capacity: atomic.LoadUint32(&u.Capacity), Age: now - counted, WhenFull: whenFull()[name],
			})
		}
	}
	return out
}

// TellUsage counts the entries of the programs' own maps for the agent, at most
// every minute. An agent that is older has no place for them.
func (p *Packet) TellUsage() error {
	now := Monotonic()
	if p.counted != 0 && now-p.counted < usagePause {
		return nil
	}
	p.counted = now
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, clustermeshMapCmUsage), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", clustermeshMapCmUsage, err)
	}
	defer m.Close()
	for i, name := range toldMaps() {
		counted := p.coll.Maps[name]
		n, err := countEntries(counted)
		if err != nil {
			return fmt.Errorf("count entries of %s: %w", name, err)
		}
		u := clustermeshCmUsage{Counted: uint64(now), Entries: n, Capacity: counted.MaxEntries()}
		if err := m.Put(uint32(i), &u); err != nil {
			return fmt.Errorf("tell the agent of %s: %w", name, err)
		}
	}
	return nil
}

// countAtOnce is how many entries are copied at once: more than any bucket of a
// hash has.
const countAtOnce = 4096

// countEntries copies a hash's entries to count them. What is inserted or deleted
// meanwhile may or may not count.
func countEntries(m *ebpf.Map) (n uint32, err error) {
	err = eachBatch(m, room(m.KeySize()), room(m.ValueSize()), func(got int) { n += uint32(got) })
	return min(n, m.MaxEntries()), err
}

// eachBatch copies a hash's entries to keys and values, countAtOnce at most at a
// time (Linux 5.6), and calls visit with how many there are now.
func eachBatch(m *ebpf.Map, keys, values any, visit func(n int)) error {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		visit(n)
		if errors.Is(err, ebpf.ErrKeyNotExist) { // the end
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// room is memory for so many keys or values of that size.
func room(size uint32) any {
	element := reflect.ArrayOf(int(size), reflect.TypeFor[byte]())
	return reflect.MakeSlice(reflect.SliceOf(element), countAtOnce, countAtOnce).Interface()
}
