package devices

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/bpf"
)

// Rule says which devices carry the programs, and how.
type Rule struct {
	// Pattern is a device's name; * and ? stand for any characters and any one.
	Pattern string
	// SNAT is for devices by which clients outside the node come in: their
	// connections get an address of the device as their source.
	SNAT bool
}

// ParseRule reads a rule as an operator writes it: PATTERN or PATTERN=snat.
func ParseRule(text string) (Rule, error) {
	pattern, option, found := strings.Cut(text, "=")
	r := Rule{Pattern: pattern, SNAT: option == "snat"}
	if _, err := path.Match(pattern, "x"); err != nil || pattern == "" || len(pattern) > 64 {
		return Rule{}, fmt.Errorf("read device %q: not a name or pattern of a network device; write for example eth0 or 'veth*'", text)
	}
	if found && !r.SNAT {
		return Rule{}, fmt.Errorf("read device %q: %q is no option; the only one is snat, as in eth0=snat", text, option)
	}
	return r, nil
}

// ParseXDP reads a mode as an operator writes it.
func ParseXDP(text string) (bpf.XDPMode, error) {
	switch text {
	case "off":
		return bpf.XDPOff, nil
	case "driver", "generic":
		return bpf.XDPMode(text), nil
	}
	return bpf.XDPOff, fmt.Errorf("read --xdp %q: need off, driver or generic", text)
}

// device is what the plan needs to know of one.
type device struct {
	index int
	name  string
	// addrs are those that it has, of any scope.
	addrs []netip.Addr
}

// choose returns the devices that carry the programs, by index. The first rule
// that matches a device decides.
//
// The XDP program goes to devices by which clients outside come in, never to pods:
// with it a pod's device loses what makes large packets cheap.
func choose(rules []Rule, xdp bpf.XDPMode, have []device) map[int]bpf.Device {
	out := map[int]bpf.Device{}
	for _, d := range have {
		i := slices.IndexFunc(rules, func(r Rule) bool { ok, _ := path.Match(r.Pattern, d.name); return ok })
		if i < 0 {
			continue
		}
		wanted := bpf.Device{
			Name: d.name, SNAT: rules[i].SNAT,
			Addr4: source(d.addrs, netip.Addr.Is4), Addr6: source(d.addrs, netip.Addr.Is6),
		}
		if wanted.SNAT {
			wanted.XDP = xdp
		}
		out[d.index] = wanted
	}
	return out
}

// source is the address of a family that a device's masqueraded connections
// get: the lowest that others can answer to.
func source(addrs []netip.Addr, family func(netip.Addr) bool) netip.Addr {
	var usable []netip.Addr
	for _, a := range addrs {
		if family(a) && a.IsGlobalUnicast() {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		return netip.Addr{}
	}
	return slices.MinFunc(usable, netip.Addr.Compare)
}

// steps are what turns the attached devices into the wanted ones: those whose
// description is new or differs, and the indexes of those that are no more.
func steps(want, attached map[int]bpf.Device) (attach []bpf.Device, detach []int) {
	for index, d := range want {
		if attached[index] != d {
			attach = append(attach, d)
		}
	}
	for index := range attached {
		if _, ok := want[index]; !ok {
			detach = append(detach, index)
		}
	}
	slices.SortFunc(attach, func(a, b bpf.Device) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(detach)
	return attach, detach
}
