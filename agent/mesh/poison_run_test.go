package mesh_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestPoisonedRecordsOfAllClasses mixes hostile changes of two clusters with
// good ones of all: nothing bad is installed, nothing good is lost, and what
// the other clusters have is that of a run without hostile changes.
//
// CLUSTERMESH_CAMPAIGN makes it a million hostile changes, CLUSTERMESH_POISON as
// many as it says, and CLUSTERMESH_POISON_SEED sets where the drawing begins.
func TestPoisonedRecordsOfAllClasses(t *testing.T) {
	n, seed := number(t, "CLUSTERMESH_POISON", changesByDefault()), number(t, "CLUSTERMESH_POISON_SEED", time.Now().UnixNano()&0xffffffff)
	if testing.Short() {
		n = min(n, 5_000)
	}
	t.Logf("seed %d", seed)
	w := newPoisonWorld(t, uint64(seed))
	start := time.Now()
	for i := range n {
		for range w.poison.rng.IntN(2) {
			w.goodChange()
		}
		w.hostileChange()
		if i%2000 == 0 || i == n-1 {
			w.compare(i)
		}
		if t.Failed() {
			t.Fatalf("at change %d of seed %d", i, seed)
		}
	}
	for _, class := range slices.Sorted(maps.Keys(w.counts)) {
		t.Logf("%7d %s", w.counts[class], class)
		if w.counts[class] == 0 {
			t.Errorf("no change of class %s", class)
		}
	}
	t.Logf("%d hostile and %d good changes in %s", n, w.goods, time.Since(start).Round(time.Millisecond))
	w.end()
}

func changesByDefault() int64 {
	if os.Getenv("CLUSTERMESH_CAMPAIGN") != "" {
		return 1_000_000
	}
	return 20_000
}

func number(t *testing.T, variable string, fallback int64) int64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return fallback
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: give a positive number", variable, text)
	}
	return n
}

const goodServices = 8

// poisonWorld is a mesh under attack beside one that hears good changes only.
type poisonWorld struct {
	t           *testing.T
	hit, spared *mesh.Mesh
	poison      *poisoner
	good        *rand.Rand
	codec       schema.SliceCodec
	counts      map[string]int
	goods       int
}

func newPoisonWorld(t *testing.T, seed uint64) *poisonWorld {
	w := &poisonWorld{t: t, hit: fortress(t), spared: fortress(t), poison: newPoisoner(seed), good: rand.New(rand.NewPCG(seed, 2)), counts: map[string]int{}}
	for _, c := range w.poison.classes {
		w.counts[c.name] = 0
	}
	return w
}

// fortress is a mesh with good services, victims, protected services and one
// whose namespace attackers may not serve, and all that an operator can
// configure.
func fortress(t *testing.T) *mesh.Mesh {
	t.Helper()
	cfg := config()
	cfg.Deny = prefixes("10.96.0.0/12")
	m := mesh.New(cfg)
	m.SetOwn(prefixes("10.0.0.0/16", "172.18.0.0/24", "fd00:10::/64"))
	for c, announced := range map[string]schema.ClusterConfig{own: announce(own), "north": announce("north"), byRecords: announce(byRecords), bySlices: announceSlices(bySlices)} {
		p := mesh.Policy{}
		if r, ok := attackers()[c]; ok {
			p = mesh.Policy{ID: ids[c], Namespaces: []string{"shop", "default", "kube-system"}}
			p.Allow = append(p.Allow, r)
		}
		m.AddCluster(c, p)
		if _, err := m.Connected(c, announced); err != nil {
			t.Fatal(err)
		}
	}
	names := []lb.ServiceName{kubeDNS, {Namespace: "default", Name: "kubernetes"}, {Namespace: "bank", Name: "safe"}}
	for i := range goodServices {
		names = append(names, svc(fmt.Sprintf("good-%d", i)))
	}
	for i := range victims {
		names = append(names, svc(fmt.Sprintf("victim-%d", i)))
	}
	for i, n := range names {
		ch := localIn(n)
		ch.Value = []byte(strings.Replace(string(ch.Value), "10.96.0.1", fmt.Sprintf("10.96.0.%d", i+1), 1))
		m.Apply(own, []mesh.Change{ch})
	}
	for _, c := range []string{own, "north", byRecords, bySlices} {
		m.Synced(c)
	}
	m.Dirty()
	return m
}

// goodChange lets any cluster say something honest about a good service, both
// meshes hear it.
func (w *poisonWorld) goodChange() {
	w.goods++
	c, name := pick(w.good, "north", byRecords, bySlices), svc(fmt.Sprintf("good-%d", w.good.IntN(goodServices)))
	var addrs []string
	for i := range w.good.IntN(5) {
		addrs = append(addrs, fmt.Sprintf("10.%d.7.%d", ids[c], i*10+w.good.IntN(10)))
	}
	ch := farIn(c, name, addrs...)
	if c == bySlices {
		s := sliceOf(c, name.Name+"-good", addrs...)
		s.Labels = map[string]string{serviceLabel: name.Name}
		ch = change(&w.codec, s)
	}
	if w.good.IntN(10) == 0 {
		ch = mesh.Change{Key: ch.Key, Deleted: true}
	}
	w.hit.Apply(c, []mesh.Change{ch})
	w.spared.Apply(c, []mesh.Change{ch})
	w.hit.Dirty()
}

func (w *poisonWorld) hostileChange() {
	bad := w.poison.draw()
	w.counts[bad.class]++
	w.hit.Apply(bad.cluster, []mesh.Change{bad.change})
	for _, n := range w.hit.Dirty() {
		if n != bad.service {
			w.t.Errorf("%s of %s changed %s", bad.class, bad.change.Key, n)
		}
	}
	if bad.service == (lb.ServiceName{}) {
		return
	}
	s, ok := w.hit.Service(bad.service)
	if !ok {
		w.t.Errorf("%s removed %s", bad.class, bad.service)
	}
	var installed []string
	for _, b := range s.Backends {
		if b.Cluster != bad.cluster {
			continue
		}
		installed = append(installed, b.Addr.Addr().String())
		if !attackers()[bad.cluster].Contains(b.Addr.Addr()) || bad.service.Namespace != "shop" {
			w.t.Errorf("%s installed %s for %s: key %q value %.300q", bad.class, b.Addr, bad.service, bad.change.Key, bad.change.Value)
		}
	}
	if !bad.mutated && !slices.Equal(installed, bad.wanted) {
		w.t.Errorf("%s of %s left %v of %s, want %v: value %.300q", bad.class, bad.cluster, installed, bad.service, bad.wanted, bad.change.Value)
	}
}

// compare holds the mesh under attack against the spared one: good services
// completely, of the others what honest clusters say.
func (w *poisonWorld) compare(at int64) {
	if got, want := w.honest(w.hit), w.honest(w.spared); got != want {
		w.t.Errorf("after %d changes got:\n%s\nwant:\n%s", at, got, want)
	}
	for _, c := range []string{own, "north"} {
		if got, want := status(w.hit, c), status(w.spared, c); fmt.Sprint(got) != fmt.Sprint(want) {
			w.t.Errorf("%s is %v, want %v", c, got, want)
		}
	}
	if err := w.hit.Audit(); err != nil {
		w.t.Error(err)
	}
}

func (w *poisonWorld) honest(m *mesh.Mesh) string {
	var out []lb.FrontendTable
	for _, n := range m.Services() {
		s, _ := m.Service(n)
		if len(n.Name) < 5 || n.Name[:4] != "good" {
			s.Backends = slices.DeleteFunc(s.Backends, func(b lb.Backend) bool { _, attacks := attackers()[b.Cluster]; return attacks })
		}
		out = append(out, lb.Merge(s)...)
	}
	return lb.Format(out)
}

// end removes the attackers: nothing of them is left.
func (w *poisonWorld) end() {
	for c := range attackers() {
		w.hit.RemoveCluster(c)
		w.spared.RemoveCluster(c)
	}
	w.compare(-1)
	for _, n := range w.hit.Services() {
		s, _ := w.hit.Service(n)
		for _, b := range s.Backends {
			if b.Cluster != own && b.Cluster != "north" {
				w.t.Errorf("%s of %s is left of %s", b.Addr, n, b.Cluster)
			}
		}
	}
}
