package privilege

import (
	"fmt"
	"math/bits"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Set is a set of capabilities: bit n stands for number n of capabilities(7).
type Set uint64

// The capabilities that the agent has to do with. Loading its programs takes
// BPF, NetAdmin and Perfmon.
const (
	NetAdmin Set = 1 << unix.CAP_NET_ADMIN
	SetPCap  Set = 1 << unix.CAP_SETPCAP
	Perfmon  Set = 1 << unix.CAP_PERFMON
	BPF      Set = 1 << unix.CAP_BPF
)

// Len is the number of capabilities in the set.
func (s Set) Len() int { return bits.OnesCount64(uint64(s)) }

// String lists the set, "none" if it is empty. Capabilities without a constant
// here appear by number.
func (s Set) String() string {
	if s == 0 {
		return "none"
	}
	names := map[Set]string{NetAdmin: "CAP_NET_ADMIN", SetPCap: "CAP_SETPCAP", Perfmon: "CAP_PERFMON", BPF: "CAP_BPF"}
	var list []string
	for n := range 64 {
		switch one := Set(1) << n; {
		case s&one == 0:
		case names[one] != "":
			list = append(list, names[one])
		default:
			list = append(list, fmt.Sprintf("CAP_%d", n))
		}
	}
	return strings.Join(list, ",")
}

// Held returns the capabilities that the calling thread holds now or could make
// effective: its permitted set.
func Held() (Set, error) {
	c, err := current()
	return c.permitted, err
}

// capabilities are the sets of one thread that capset(2) changes.
type capabilities struct{ effective, permitted, inheritable Set }

// kernelSets is how capget(2) and capset(2) take three 64-bit sets: halves of
// 32 bits, lower ones first.
type kernelSets [2]unix.CapUserData

func current() (capabilities, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var k kernelSets
	if err := unix.Capget(&header, &k[0]); err != nil {
		return capabilities{}, fmt.Errorf("read capabilities: %w", err)
	}
	join := func(low, high uint32) Set { return Set(low) | Set(high)<<32 }
	return capabilities{
		effective:   join(k[0].Effective, k[1].Effective),
		permitted:   join(k[0].Permitted, k[1].Permitted),
		inheritable: join(k[0].Inheritable, k[1].Inheritable),
	}, nil
}

func (c capabilities) kernel() (k kernelSets) {
	for half := range k {
		shift := 32 * half
		k[half] = unix.CapUserData{
			Effective: uint32(c.effective >> shift), Permitted: uint32(c.permitted >> shift), Inheritable: uint32(c.inheritable >> shift),
		}
	}
	return k
}

// setOnThread changes the calling thread only.
func (c capabilities) setOnThread() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	k := c.kernel()
	return unix.Capset(&header, &k[0])
}

// setCapabilities leaves every thread with keep and nothing to inherit.
func setCapabilities(keep Set) error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	k := capabilities{effective: keep, permitted: keep}.kernel()
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(&k[0])), 0)
	if errno != 0 {
		return fmt.Errorf("set capabilities to %s: %w", keep, errno)
	}
	return nil
}

// emptyBoundingSet needs CAP_SETPCAP. Without it the set stays, which
// no_new_privs makes meaningless: executing a program then gains nothing.
func emptyBoundingSet(Set) error {
	c, err := current()
	if err != nil || c.effective&SetPCap == 0 {
		return err
	}
	for n := uintptr(0); n < 64; n++ {
		if in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, n, 0, 0, 0); err != nil {
			return nil // beyond the last capability of this kernel
		} else if in == 0 {
			continue
		}
		if err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, n, 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", n, err)
		}
	}
	return nil
}
