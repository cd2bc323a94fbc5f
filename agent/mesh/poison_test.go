package mesh_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// The clusters that attack: west publishes service records, south endpoint
// slices. Each may name the addresses of one range and services of three
// namespaces, one of which is protected.
const (
	byRecords = remote
	bySlices  = "south"
)

// attackers say where their backends may lie.
func attackers() map[string]netip.Prefix {
	return map[string]netip.Prefix{byRecords: netip.MustParsePrefix("10.1.0.0/16"), bySlices: netip.MustParsePrefix("10.4.0.0/16")}
}

// poisoned is one hostile change. Of service, from now on, exactly the wanted
// addresses may be installed of the attacker; if it is mutated, whatever lies in
// the attacker's range, since nobody can tell a claim from a slip of the pen.
type poisoned struct {
	class   string
	cluster string
	change  mesh.Change
	service lb.ServiceName
	wanted  []string
	mutated bool
}

// poisoner draws hostile changes of all classes.
type poisoner struct {
	rng     *rand.Rand
	codec   schema.SliceCodec
	classes []poisonClass
	bombs   [][]byte // large values, made once and when the first is drawn
}

type poisonClass struct {
	name string
	make func(*poisoner, *poisoned)
	rare bool // costs much
}

func newPoisoner(seed uint64) *poisoner {
	p := &poisoner{rng: rand.New(rand.NewPCG(seed, 1))}
	p.classes = []poisonClass{
		{"R-01 another cluster's name", (*poisoner).foreignName, false},
		{"R-01 another cluster's id", (*poisoner).foreignID, false},
		{"R-01 another cluster's key", (*poisoner).foreignKey, false},
		{"R-01 another service than the key's", (*poisoner).foreignService, false},
		{"R-03 bad address", (*poisoner).badAddress, false},
		{"R-03 bad address among good ones", (*poisoner).mixedAddresses, false},
		{"R-03 odd spelling of an address", (*poisoner).oddAddress, false},
		{"R-04 protected service", (*poisoner).protected, false},
		{"R-04 namespace that is not accepted", (*poisoner).otherNamespace, false},
		{"R-04 frontends and policy", (*poisoner).frontends, false},
		{"R-05 identity or address entry", (*poisoner).otherKind, false},
		{"R-06 broken encoding", (*poisoner).broken, false},
		{"R-06 mutated value", (*poisoner).mutate, false},
		{"R-06 bomb", (*poisoner).bomb, true},
		{"R-10 deletion", (*poisoner).deletion, false},
		{"R-14 other clusters' backends again", (*poisoner).reexport, false},
	}
	return p
}

// draw returns the next hostile change.
func (p *poisoner) draw() poisoned {
	for {
		c := &p.classes[p.rng.IntN(len(p.classes))]
		if c.rare && p.rng.IntN(100) > 0 {
			continue
		}
		out := poisoned{class: c.name, cluster: pick(p.rng, byRecords, bySlices), service: p.victim()}
		c.make(p, &out)
		return out
	}
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

const victims = 16

// victim is a service that attackers may add to, but whose good records no test
// relies on.
func (p *poisoner) victim() lb.ServiceName { return svc(fmt.Sprintf("victim-%d", p.rng.IntN(victims))) }

// good is an address that the cluster may name.
func (p *poisoner) good(cluster string) string {
	a := attackers()[cluster].Addr().As4()
	a[2], a[3] = byte(p.rng.IntN(256)), byte(p.rng.IntN(256))
	return netip.AddrFrom4(a).String()
}

// bad is an address that it may not name.
func (p *poisoner) bad(cluster string) string {
	switch p.rng.IntN(4) {
	case 0: // another remote's range
		return pick(p.rng, "10.3.0.1", map[string]string{byRecords: "10.4.0.7", bySlices: "10.1.0.7"}[cluster])
	case 1: // ours
		return pick(p.rng, "10.0.0.1", "10.0.255.255", "172.18.0.2", "172.18.0.255", "10.96.0.1", "10.111.255.255", "fd00:10::5")
	}
	return pick(p.rng, "127.0.0.1", "127.255.0.9", "0.0.0.0", "0.0.0.1", "::", "::1", "169.254.169.254", "169.254.0.1", "224.0.0.1", "239.255.255.255",
		"255.255.255.255", "64:ff9b::169.254.169.254", "64:ff9b:1::7f00:1", "2002:a9fe:a9fe::1", "2001::a9fe:a9fe", "::ffff:0:127.0.0.1", "fec0::1",
		"192.0.0.192", "168.63.129.16", "100.100.100.200", "fd20:ce::254", "fe80::1", "febf::1", "ff02::1", "fd00:ec2::254", "::10.1.0.5", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "8.8.8.8", "2001:db8::1", "10.2.0.1")
}

// entry makes out.change the record or slice of out.service with the addresses.
func (p *poisoner) entry(out *poisoned, addrs ...string) {
	if out.cluster == byRecords {
		out.change = farIn(out.cluster, out.service, addrs...)
		return
	}
	out.change = change(&p.codec, p.slice(out, addrs...))
}

func (p *poisoner) slice(out *poisoned, addrs ...string) *schema.EndpointSlice {
	s := sliceOf(out.cluster, out.service.Name+"-a")
	s.Namespace, s.Labels = out.service.Namespace, map[string]string{serviceLabel: out.service.Name}
	for _, text := range addrs {
		a := netip.MustParseAddr(text)
		if a.Unmap().Is4() != (s.AddressType == schema.IPv4) {
			s.AddressType = schema.IPv6
		}
		s.Endpoints = append(s.Endpoints, schema.Endpoint{Addresses: []netip.Addr{a}})
	}
	return s
}

func (p *poisoner) foreignName(out *poisoned) {
	key := p.ownKey(out)
	if out.cluster == byRecords {
		s := schema.Service{Cluster: pick(p.rng, own, "north", bySlices, "West", ""), ClusterID: ids[out.cluster], Namespace: out.service.Namespace, Name: out.service.Name,
			Shared: true, IncludeExternal: true, Backends: map[netip.Addr]schema.PortMap{netip.MustParseAddr(p.good(out.cluster)): {"http": {Protocol: schema.TCP, Port: 8080}}}}
		out.change = mesh.Change{Key: key, Value: s.Encode()}
		return
	}
	s := p.slice(out, p.good(out.cluster))
	s.Cluster = pick(p.rng, own, "north", byRecords, "South")
	out.change = mesh.Change{Key: key, Value: p.codec.Encode(s)}
}

// ownKey is the key that an honest record of out.service has.
func (p *poisoner) ownKey(out *poisoned) string {
	p.entry(out)
	return out.change.Key
}

func (p *poisoner) foreignID(out *poisoned) {
	p.entry(out, p.good(out.cluster))
	id := pick(p.rng, ownID, ids["north"], 0, 255, 99)
	if out.cluster == byRecords {
		out.change.Value = bytes.Replace(out.change.Value, fmt.Appendf(nil, `"clusterID":%d`, ids[out.cluster]), fmt.Appendf(nil, `"clusterID":%d`, id), 1)
		return
	}
	s := p.slice(out, p.good(out.cluster))
	s.ClusterID = id
	out.change.Value = p.codec.Encode(s)
}

func (p *poisoner) foreignKey(out *poisoned) {
	value := func() []byte { p.entry(out, p.good(out.cluster)); return out.change.Value }()
	n := out.service
	out.change = mesh.Change{Value: value, Key: pick(p.rng,
		schema.ServiceKey("north", n.Namespace, n.Name), schema.ServiceKey(own, n.Namespace, n.Name), schema.EndpointSliceKey("north", n.Namespace, n.Name),
		schema.LocalServiceKey(own, n.Namespace, n.Name), schema.ClusterConfigKey("north"), schema.ClusterConfigKey(out.cluster),
		"cilium/cache/services/v1/"+out.cluster+"/"+n.String(), "", "/", "cilium/state/services/v1/"+out.cluster+"//x",
		"cilium/state/services/v1/"+out.cluster+"/../north/"+n.String(), strings.Repeat("a/", 600), "cilium/state/services/v1/\x00\x1b[2J/"+n.String())}
	out.service = lb.ServiceName{} // whatever it had before stays
}

func (p *poisoner) foreignService(out *poisoned) {
	p.entry(out, p.good(out.cluster))
	value := out.change.Value
	other := *out
	other.service = svc("good-1")
	p.entry(&other)
	if out.cluster == byRecords {
		out.change.Value = other.change.Value
		return
	}
	out.change = mesh.Change{Key: schema.EndpointSliceKey(out.cluster, "bank", out.service.Name+"-a"), Value: value}
	out.service = lb.ServiceName{}
}

func (p *poisoner) badAddress(out *poisoned) { p.entry(out, p.bad(out.cluster)) }

func (p *poisoner) mixedAddresses(out *poisoned) {
	good, bad := p.good(out.cluster), p.bad(out.cluster)
	if out.cluster == bySlices && !netip.MustParseAddr(bad).Is4() { // a slice has one family
		bad = "10.96.0.1"
	}
	p.entry(out, bad, good)
	out.wanted = []string{good}
}

// oddAddress spells what an honest exporter spells otherwise; the whole record
// is refused.
func (p *poisoner) oddAddress(out *poisoned) {
	good := p.good(out.cluster)
	if out.cluster == bySlices {
		s := p.slice(out, good)
		s.AddressType = schema.IPv6
		out.change = mesh.Change{Key: p.ownKey(out), Value: p.codec.Encode(s)}
		return
	}
	p.entry(out, good)
	odd := pick(p.rng, good+"%eth0", "0"+good, " "+good, good+"/32", good+":80", "fe80::1%lo", "1", "0x0a010001", "localhost", "", strings.Repeat("1", 300), "10.1.0.1\\u0000")
	out.change.Value = bytes.Replace(out.change.Value, []byte(`"`+good+`"`), []byte(`"`+odd+`"`), 1)
}

func (p *poisoner) protected(out *poisoned) {
	out.service = pick(p.rng, lb.ServiceName{Namespace: "default", Name: "kubernetes"}, kubeDNS)
	p.entry(out, p.good(out.cluster))
}

func (p *poisoner) otherNamespace(out *poisoned) {
	out.service = lb.ServiceName{Namespace: "bank", Name: "safe"}
	p.entry(out, p.good(out.cluster))
}

// frontends claims our addresses and another policy for a service that we have;
// only the backend counts.
func (p *poisoner) frontends(out *poisoned) {
	out.cluster = byRecords
	good := p.good(out.cluster)
	var s map[string]any
	if err := json.Unmarshal(farIn(out.cluster, out.service, good).Value, &s); err != nil {
		panic(err)
	}
	s["frontends"] = map[string]any{"10.96.0.1": map[string]any{"http": map[string]any{"Protocol": "TCP", "Port": 443}}}
	s["affinity"], s["serviceAffinity"] = "remote", "remote"
	value, _ := json.Marshal(s)
	out.change = mesh.Change{Key: keyOf(out.cluster, out.service), Value: value}
	out.wanted = []string{good}
}

func (p *poisoner) otherKind(out *poisoned) {
	out.service = lb.ServiceName{}
	out.change = pick(p.rng,
		mesh.Change{Key: schema.IdentityKey(pick(p.rng, uint32(1), 7, 131072, 1<<24)), Value: []byte("k8s:io.cilium.k8s.policy.cluster=" + out.cluster + ";")},
		mesh.Change{Key: schema.IPKey("10.0.0.1"), Value: []byte(`{"IP":"10.0.0.1","ID":1}`)},
		mesh.Change{Key: schema.NodeKey(out.cluster, "n"), Value: []byte(`{}`)},
		mesh.Change{Key: schema.ServiceExportKey(out.cluster, "shop", "good-1"), Value: []byte(`{}`)})
}

func (p *poisoner) broken(out *poisoned) {
	p.entry(out, p.good(out.cluster))
	out.change.Value = pick(p.rng, nil, []byte("null"), []byte("[]"), []byte("{"), []byte(`{"cluster":1}`), []byte("\xff\xfe"), []byte{0x28, 0xb5, 0x2f, 0xfd},
		out.change.Value[1:], append([]byte("\x00"), out.change.Value...), bytes.Repeat([]byte("["), 200),
		out.change.Value[:len(out.change.Value)-3], // below: a member twice
		bytes.Replace(append([]byte("{"), out.change.Value...), []byte(`{{"cluster"`), []byte(`{"cluster":"west","cluster"`), 1))
}

func (p *poisoner) mutate(out *poisoned) {
	p.entry(out, p.good(out.cluster), p.good(out.cluster))
	out.mutated = true
	for range 1 + p.rng.IntN(4) {
		v := out.change.Value
		i := p.rng.IntN(len(v))
		switch p.rng.IntN(3) {
		case 0:
			v[i] ^= 1 << p.rng.IntN(8)
		case 1:
			out.change.Value = append(v[:i:i], v[min(len(v), i+1+p.rng.IntN(4)):]...)
		default:
			out.change.Value = append(append(v[:i:i], byte(p.rng.IntN(256))), v[i:]...)
		}
		if len(out.change.Value) == 0 {
			return
		}
	}
}

func (p *poisoner) bomb(out *poisoned) {
	if p.bombs == nil {
		p.bombs = bombs()
	}
	p.entry(out, p.good(out.cluster))
	out.change.Value = pick(p.rng, p.bombs...)
}

func (p *poisoner) deletion(out *poisoned) {
	p.entry(out)
	out.change = mesh.Change{Key: out.change.Key, Deleted: true}
}

// reexport says what an importer of other clusters' backends would say.
func (p *poisoner) reexport(out *poisoned) {
	out.cluster = bySlices
	s := p.slice(out, pick(p.rng, p.good(out.cluster), "10.3.0.1", "10.0.0.1"))
	s.Labels[managerLabel] = meshManager
	out.change = mesh.Change{Key: p.ownKey(out), Value: p.codec.Encode(s)}
}

// bombs are values that are large, become large, or nest deeply.
func bombs() [][]byte {
	record := func(backends int) []byte {
		var b bytes.Buffer
		fmt.Fprintf(&b, `{"cluster":"west","namespace":"shop","name":"victim-1","clusterID":1,"shared":true,"includeExternal":true,"backends":{`)
		for i := range backends {
			fmt.Fprintf(&b, `"10.1.%d.%d":{"":{"Protocol":"TCP","Port":80}},`, i>>8&255, i&255)
		}
		return append(bytes.TrimSuffix(b.Bytes(), []byte(",")), "}}"...)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	defer z.Close()
	return [][]byte{
		bytes.Repeat([]byte("a"), 3<<19), record(5001), record(30_000), []byte(`{"labels":{"a":"` + strings.Repeat("x", 2<<20) + `"}}`),
		[]byte(strings.Repeat(`{"a":`, 100_000) + "1"), z.EncodeAll(make([]byte, 64<<20), nil), z.EncodeAll(bytes.Repeat([]byte{0x0a, 0}, 4<<20), nil),
	}
}
