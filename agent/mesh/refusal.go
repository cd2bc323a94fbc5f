package mesh

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// Bounds on what is remembered of a hostile cluster: how many keys are counted,
// how many of them are described, and how long a description and its key may be.
const (
	maxRefusedKeys = 10_000
	maxDescribed   = 256
	maxExample     = 512
	maxKeyText     = 256
	maxAddresses   = 8
)

// Refusal describes a key whose value, or part of it, is not accepted now.
type Refusal struct {
	Cluster string
	// Key is printable text; what is not printable in the key is replaced.
	Key string
	// Service is the one it is about; empty where the value was not understood.
	Service lb.ServiceName
	// Addresses are those refused in it, at most eight, if any is the reason.
	Addresses []netip.Addr
	Reason    Reason
	// Text says what is wrong with it.
	Text string
}

// Remedy says in a few words what an operator can do about a reason.
func (r Reason) Remedy() string {
	return [...]string{
		"the cluster publishes keys that are not its own; ask its operator which version of which exporter runs there",
		"the cluster's exporter writes what nobody understands; compare its version with ours",
		"the cluster speaks for another one; check its name and id there, and do not trust it before that is clear",
		"allow the namespace for that cluster in its peer file, or let the cluster not share the service",
		"if the address is a pod of that cluster, add its pod CIDR to its peer file, or correct ranges of ours that overlap; else ask its operator why it is published",
		"raise the cluster's quota in its peer file (max-backends, or max-service-backends for one service), or let it share fewer services",
	}[r]
}

// refusal is what is to be remembered of one rejection.
type refusal struct {
	key     string
	service lb.ServiceName
	address netip.Addr // refused, if that is the reason
	reason  Reason
}

// described are the latest refused keys of a cluster, in a ring.
type described struct {
	slots  [maxDescribed]Refusal // Key "" is free
	hashes [maxDescribed]uint64
	at     map[uint64]int
	next   int
}

// reject remembers that the value of a key was not accepted. Keys are
// remembered by hash: a remote that searches for collisions confuses only what
// is told about itself.
func (c *cluster) reject(what refusal, err error) {
	r := &c.rejections[what.reason]
	r.Reason = what.reason
	r.Total++
	r.Last = err.Error()
	if len(r.Last) > maxExample {
		r.Last = r.Last[:maxExample]
	}
	h := hashKey(what.key)
	c.describe(h, what, r.Last)
	if _, known := c.refused[h]; known || len(c.refused) >= maxRefusedKeys {
		return
	}
	if c.refused == nil {
		c.refused = map[uint64]Reason{}
	}
	c.refused[h] = what.reason
	r.Keys++
}

func (c *cluster) describe(h uint64, what refusal, text string) {
	if c.described == nil {
		c.described = &described{at: map[uint64]int{}}
	}
	d := c.described
	n, known := d.at[h]
	if !known {
		n = d.next
		d.next = (d.next + 1) % maxDescribed
		d.clear(n)
		d.at[h], d.hashes[n] = n, h
		d.slots[n] = Refusal{Cluster: c.name, Key: printable(what.key)}
	}
	s := &d.slots[n]
	if s.Reason != what.reason || !what.address.IsValid() {
		s.Addresses = nil
	}
	if s.Service != what.service {
		s.Service = lb.ServiceName{Namespace: strings.Clone(what.service.Namespace), Name: strings.Clone(what.service.Name)}
	}
	s.Reason, s.Text = what.reason, text
	if a := what.address; a.IsValid() && len(s.Addresses) < maxAddresses && !slices.Contains(s.Addresses, a.Unmap()) {
		s.Addresses = append(s.Addresses, a.Unmap())
	}
}

func (d *described) clear(n int) {
	if d.slots[n].Key != "" {
		delete(d.at, d.hashes[n])
		d.slots[n] = Refusal{}
	}
}

// printable copies a key that a remote chose.
func printable(key string) string {
	key = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, key[:min(len(key), maxKeyText)])
	if key == "" {
		return "?"
	}
	return strings.Clone(key)
}

// readmit forgets that a value of key was refused.
func (c *cluster) readmit(key string) {
	if len(c.refused) == 0 && c.described == nil {
		return
	}
	h := hashKey(key)
	if reason, known := c.refused[h]; known {
		delete(c.refused, h)
		c.rejections[reason].Keys--
	}
	if n, known := c.described.find(h); known {
		c.described.clear(n)
	}
}

func (d *described) find(h uint64) (n int, known bool) {
	if d == nil {
		return 0, false
	}
	n, known = d.at[h]
	return n, known
}

// refusedAny reports whether a key may be refused now for a reason.
func (c *cluster) refusedAny(reason Reason) bool {
	return c.rejections[reason].Keys > 0 || len(c.refused) >= maxRefusedKeys
}

// forgetRefused starts the count of refused keys anew.
func (c *cluster) forgetRefused() {
	c.refused, c.described = nil, nil
	for i := range c.rejections {
		c.rejections[i].Keys = 0
	}
}

func hashKey(key string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	return h.Sum64()
}

// Refusals returns, by cluster and key, the latest refused keys of every
// cluster, at most 256 of each.
func (m *Mesh) Refusals() []Refusal {
	var out []Refusal
	for _, c := range m.clusters {
		if c.described == nil {
			continue
		}
		for _, r := range c.described.slots {
			if r.Key != "" {
				r.Addresses = slices.Clone(r.Addresses)
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, func(a, b Refusal) int { return strings.Compare(a.Cluster+"\x00"+a.Key, b.Cluster+"\x00"+b.Key) })
	return out
}

// Concerns reports whether the refusal is about a service, as far as the key
// tells where the value did not.
func (r Refusal) Concerns(name lb.ServiceName) bool {
	if r.Service == name {
		return true
	}
	if r.Service.Name != "" {
		return false
	}
	rest, ok := strings.CutPrefix(r.Key[strings.LastIndex(r.Key, "/")+1:], name.Name)
	return ok && (rest == "" || rest[0] == '-') && strings.Contains(r.Key, "/"+name.Namespace+"/")
}
