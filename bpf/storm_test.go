package bpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
)

// The storm is a writer that changes sets as fast as it can, readers that connect
// as fast as they can, and a naive model: every set has one number, which all its
// backends carry in their addresses. A reader knows between which two numbers the
// set in force must have been during its connect.

const (
	stormServices = 8
	stormMost     = 40 // backends
)

// stormy is one service of the storm.
type stormy struct {
	table lb.FrontendTable
	// begun is the number of the newest set that may be in force, done of the
	// newest one that must be; what is older must not.
	begun, done atomic.Uint32
}

// stormBackend is backend i of set number n: 24 bits of number in the address, and
// a port that belongs to this address and index alone.
func stormBackend(n, i uint32) netip.AddrPort {
	n &= 1<<24 - 1
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)}), uint16(stormPort(n)+i))
}

func stormPort(n uint32) uint32 { return 1024 + n*2654435761>>17 }

func newStormy(i int) *stormy {
	s := &stormy{table: lb.FrontendTable{
		Service:  lb.ServiceName{Namespace: "storm", Name: fmt.Sprint(i)},
		Frontend: lb.Frontend{Addr: netip.MustParseAddrPort(fmt.Sprintf("10.96.7.%d:53", i)), Protocol: lb.UDP},
	}}
	return s
}

// change makes up the next set.
func (s *stormy) change(random *rand.Rand) []lb.FrontendTable {
	n, t := s.begun.Load(), &s.table
	t.Backends = t.Backends[:0]
	t.Consistent, t.SessionAffinity = random.IntN(8) == 0, uint32(random.IntN(3)/2*600)
	weights := random.IntN(2) == 0
	for i := range uint32(1 + random.IntN(stormMost)) {
		c := lb.Choice{Selected: true, Weight: 1, Backend: lb.Backend{Addr: stormBackend(n, i), Protocol: lb.UDP, Cluster: "c", ClusterID: uint16(1 + i%5)}}
		if weights {
			c.Weight = uint32(1 + random.IntN(9))
		}
		t.Backends = append(t.Backends, c)
	}
	for i := range random.IntN(4) { // known, and never to be chosen
		t.Backends = append(t.Backends, lb.Choice{Backend: lb.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(i+1)), Protocol: lb.UDP, Cluster: "c", ClusterID: 1}})
	}
	return []lb.FrontendTable{*t}
}

// stormWriter changes random services, after each of them once.
type stormWriter struct {
	dp     *Datapath
	r      *datapath.Reconciler
	random *rand.Rand
}

// write waits for readers when the slab is used up.
func (w *stormWriter) write(services []*stormy, changes int) error {
	for i := range changes {
		s := services[i%len(services)]
		if changes > len(services) {
			s = services[w.random.IntN(len(services))]
		}
		s.begun.Add(1)
		if i%64 == 0 && w.r.Usage().LargestFree < 1<<16 {
			if err := w.grace(); err != nil {
				return err
			}
		}
		if _, err := w.r.Set(s.table.Service, s.change(w.random)); err != nil {
			return err
		}
		s.done.Store(s.begun.Load())
	}
	return nil
}

func (w *stormWriter) grace() error {
	ticket, _ := w.r.Quarantined()
	if err := w.dp.WaitRCU(); err != nil {
		return err
	}
	w.r.Release(ticket)
	return nil
}

// read connects sockets until stop, and returns how many it looked at.
func stormRead(dp *Datapath, services []*stormy, stop *atomic.Bool) (int, error) {
	random := rand.New(rand.NewPCG(3, 4))
	for n := 0; ; n++ {
		if stop.Load() {
			return n, nil
		}
		if err := stormLook(dp, services[random.IntN(len(services))]); err != nil {
			return n, err
		}
	}
}

// stormLook connects to a service and holds the backend that the kernel remembers
// of the socket against the model.
func stormLook(dp *Datapath, s *stormy) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := s.table.Frontend.Addr
	oldest := s.done.Load()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		return fmt.Errorf("connect to %s: %w", at, err)
	}
	newest := s.begun.Load()
	var peer clustermeshCmPeer
	if err := dp.coll.Maps[clustermeshMapCmPeers].Lookup(int32(fd), &peer); err != nil {
		return fmt.Errorf("the socket went to %s itself: %w", at, err)
	}
	got := endpoint(peer.Backend)
	a := got.Addr().As4()
	n := uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	i := uint32(got.Port()) - stormPort(n)
	if a[0] != 127 || i >= stormMost || n < oldest || n > newest {
		return fmt.Errorf("%s gave %s, which is backend %d of set %d; sets %d to %d were in force", at, got, i, n, oldest, newest)
	}
	return nil
}

// runStorm is a process inside the cgroup that its own datapath is attached to,
// so that writer and readers share memory.
func runStorm(dir, cgroup string, changes int) error {
	dp, err := Load(Options{PinDir: dir, Cgroup: cgroup, MaxRecords: 1 << 18})
	if err != nil {
		return err
	}
	services := make([]*stormy, stormServices)
	for i := range services {
		services[i] = newStormy(i)
	}
	w := &stormWriter{dp: dp, r: datapath.New(dp), random: rand.New(rand.NewPCG(1, 2))}
	if err := w.write(services, len(services)); err != nil {
		return err
	}
	var stop atomic.Bool
	var looked [2]int
	var errs [2]error
	var readers sync.WaitGroup
	for i := range looked {
		readers.Go(func() { looked[i], errs[i] = stormRead(dp, services, &stop) })
	}
	err = w.write(services, changes)
	stop.Store(true)
	readers.Wait()
	for i, e := range errs {
		if e != nil {
			return fmt.Errorf("after %d connects: %w", looked[i], e)
		}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "%d changes, %d connects\n", changes, looked[0]+looked[1])
	return dp.Close()
}

// TestStorm: whatever the sets' weights, tables and affinity, no connect gets a
// backend of a set that was replaced before it, of two sets, or none.
func TestStorm(t *testing.T) {
	f := newPlace(t)
	cmd := f.inCgroup(f.opts.Cgroup, "storm", f.opts.PinDir, f.opts.Cgroup, fmt.Sprint(campaign(30_000, 1_000_000)))
	cmd.Stderr = nil
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}
