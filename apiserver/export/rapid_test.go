package export_test

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

// hashed gives numbers that depend on nothing but the labels.
type hashed struct{}

func (hashed) Acquire(labels string) (uint32, bool) {
	h := fnv.New32a()
	h.Write([]byte(labels))
	return 1<<31 | h.Sum32(), true
}

func (hashed) Release(string) {}

func newExporter(ids export.Identities) *export.Exporter { return export.New(plain(), ids) }

func plain() export.Config {
	return export.Config{Cluster: "east", ClusterID: 7, MaxClusters: 255, DefaultGlobalNamespace: true}
}

// variants are the ways in which an exporter may be configured.
func variants() map[string]export.Config {
	everything, cilium, slices := plain(), plain(), plain()
	everything.EndpointSlices, everything.ServiceExports = schema.ModeServicesAndEndpointSlices, true
	cilium.CiliumIdentities = true
	slices.EndpointSlices, slices.CiliumIdentities, slices.ServiceExports = schema.ModeEndpointSlicesOnly, true, true
	return map[string]export.Config{"plain": plain(), "everything": everything, "cilium": cilium, "slices": slices}
}

// world is the set of objects that exist, by kind and name.
type world map[string]any

func objectKey(o metav1.Object) string {
	return fmt.Sprintf("%T %s/%s", o, o.GetNamespace(), o.GetName())
}

// Whatever the order, the batching and the detours in which objects were
// heard, what is published is what a fresh exporter makes of the objects.
func TestIncrementalEqualsFresh(t *testing.T) {
	for what, config := range variants() {
		t.Run(what, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { incrementalEqualsFresh(t, config) })
		})
	}
}

func incrementalEqualsFresh(t *rapid.T, config export.Config) {
	now, published := world{}, map[string]string{}
	e := export.New(config, hashed{})
	t.Repeat(map[string]func(*rapid.T){
		"apply": func(t *rapid.T) {
			records := e.Apply(now.change(t))
			accumulate(t, published, records)
			readable(t, config, records)
		},
		"": func(t *rapid.T) {
			fresh := export.New(config, hashed{})
			want := map[string]string{}
			accumulate(t, want, fresh.Apply(now.all()))
			compare(t, "incremental", published, want)
			if got, want := e.Problems(), fresh.Problems(); !slices.Equal(got, want) {
				t.Fatalf("problems differ:\n%v\n%v", got, want)
			}
		},
		"all": func(t *rapid.T) {
			all := map[string]string{}
			accumulate(t, all, e.All())
			compare(t, "all", all, published)
			if again := e.Apply(now.all()); len(again) != 0 {
				t.Fatalf("applying what is known changed %v", again)
			}
		},
	})
}

// readable checks that readers take every record, except for our numbers, which
// come from outside of the cluster's range here.
func readable(t *rapid.T, config export.Config, records []export.Record) {
	for _, r := range records {
		if number := r.Kind == schema.KindIdentity || r.Kind == schema.KindIP; number && !config.CiliumIdentities {
			continue
		}
		if _, err := read(config, r); err != nil {
			t.Fatalf("readers refuse %s: %v\n%s", r.Key, err, r.Value)
		}
	}
}

func accumulate(t *rapid.T, into map[string]string, records []export.Record) {
	seen := map[string]bool{}
	for _, r := range records {
		if seen[r.Key] {
			t.Fatalf("key %s occurs twice in one answer", r.Key)
		}
		seen[r.Key] = true
		_, known := into[r.Key]
		switch {
		case r.Value == nil && !known:
			t.Fatalf("deletion of %s, which is not published", r.Key)
		case r.Value == nil:
			delete(into, r.Key)
		case into[r.Key] == string(r.Value):
			t.Fatalf("%s is published again without a change", r.Key)
		default:
			into[r.Key] = string(r.Value)
		}
	}
}

func compare(t *rapid.T, what string, got, want map[string]string) {
	if maps.Equal(got, want) {
		return
	}
	for k := range want {
		if got[k] != want[k] {
			t.Errorf("%s: %s\n got %s\nwant %s", what, k, got[k], want[k])
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%s: %s should not be there", what, k)
		}
	}
	t.FailNow()
}

// change draws some changes and applies them to the world.
func (w world) change(t *rapid.T) []export.Change {
	var changes []export.Change
	for range rapid.IntRange(1, 4).Draw(t, "changes") {
		o := object().Draw(t, "object")
		deleted := rapid.IntRange(0, 3).Draw(t, "deleted") == 0
		if deleted {
			delete(w, objectKey(o))
		} else {
			w[objectKey(o)] = o
		}
		changes = append(changes, export.Change{Deleted: deleted, Object: o})
	}
	return changes
}

func (w world) all() []export.Change {
	var changes []export.Change
	for _, o := range w { // in a random order
		changes = append(changes, export.Change{Object: o})
	}
	return changes
}

func object() *rapid.Generator[metav1.Object] {
	return rapid.OneOf(rapid.Custom(drawNamespace), rapid.Custom(drawService), rapid.Custom(drawSlice),
		rapid.Custom(drawPod), rapid.Custom(drawNode), rapid.Custom(drawExport), rapid.Custom(drawCiliumNode),
		rapid.Custom(drawCiliumIdentity), rapid.Custom(drawCiliumEndpoint), rapid.Custom(drawCiliumSlice))
}

func pick(t *rapid.T, label string, values ...string) string {
	return rapid.SampledFrom(values).Draw(t, label)
}

func meta(t *rapid.T, names ...string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: pick(t, "namespace", "a", "b"), Name: pick(t, "name", names...)}
}

func drawNamespace(t *rapid.T) metav1.Object {
	ns := &corev1.Namespace{}
	ns.Name = pick(t, "name", "a", "b")
	ns.Labels = map[string]string{"team": pick(t, "team", "x", "y")}
	if v := pick(t, "global", "", "true", "false", "?"); v != "" {
		ns.Annotations = map[string]string{"clustermesh.cilium.io/global": v}
	}
	return ns
}

func drawService(t *rapid.T) metav1.Object {
	s := &corev1.Service{ObjectMeta: meta(t, "web", "db")}
	s.Annotations = map[string]string{
		"service.cilium.io/global": pick(t, "global", "true", "true", "false"),
		"service.cilium.io/shared": pick(t, "shared", "true", "false", "?"),
		"clustermesh.io/tiers":     pick(t, "tiers", "local;*", "", "\xff", strings.Repeat("x", 1025)),
	}
	s.Spec.ClusterIP = pick(t, "ip", "10.0.0.1", "None", "", "bad")
	s.Spec.Type = corev1.ServiceType(pick(t, "type", "", "ClusterIP", "ExternalName"))
	s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	return s
}

func drawSlice(t *rapid.T) metav1.Object {
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta(t, "s1", "s2", "s3"), AddressType: discoveryv1.AddressTypeIPv4}
	s.AddressType = discoveryv1.AddressType(pick(t, "family", "IPv4", "IPv4", "IPv6", "FQDN", ""))
	s.Labels = map[string]string{discoveryv1.LabelServiceName: pick(t, "service", "web", "db")}
	s.Annotations = map[string]string{"note": pick(t, "note", "", "x", "\xff")}
	port, ready := int32(rapid.IntRange(0, 2).Draw(t, "port")), rapid.Bool().Draw(t, "ready")
	portName, zone := pick(t, "port name", "", "http", "grpc"), pick(t, "zone", "", "z1", "z2")
	s.Ports = []discoveryv1.EndpointPort{{Name: &portName, Port: &port}}
	s.Endpoints = []discoveryv1.Endpoint{{
		Addresses:  []string{pick(t, "address", "10.1.0.1", "10.1.0.2", "::1")},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready}, Zone: &zone,
	}}
	return s
}

func drawPod(t *rapid.T) metav1.Object {
	p := &corev1.Pod{ObjectMeta: meta(t, "p1", "p2", "p3")}
	p.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(0, 2).Draw(t, "age")), 0)
	p.Labels = map[string]string{"app": pick(t, "app", "x", "y"), "pod-template-hash": pick(t, "hash", "1", "2")}
	p.Status.PodIP = pick(t, "ip", "", "10.1.0.1", "10.1.0.2", "bad")
	p.Status.Phase = corev1.PodPhase(pick(t, "phase", "Running", "Running", "Failed"))
	p.Spec.HostNetwork = rapid.IntRange(0, 5).Draw(t, "host network") == 0
	return p
}

func drawNode(t *rapid.T) metav1.Object {
	n := &corev1.Node{}
	n.Name, n.Spec.PodCIDR = pick(t, "name", "n1", "n2"), pick(t, "cidr", "10.1.0.0/24", "bad")
	return n
}

// few is a range of a given size that gives out numbers in turn.
type few struct {
	free  []uint32
	given map[string]uint32
}

func (f *few) Acquire(labels string) (uint32, bool) {
	if n, ok := f.given[labels]; ok {
		return n, true
	}
	if len(f.free) == 0 {
		return 0, false
	}
	f.given[labels], f.free = f.free[0], f.free[1:]
	return f.given[labels], true
}

func (f *few) Release(labels string) {
	f.free = append(f.free, f.given[labels])
	delete(f.given, labels)
}

// Pods that find no number wait for one, and get it when one is free.
func TestExhaustedIdentities(t *testing.T) {
	e := newExporter(&few{free: []uint32{500000}, given: map[string]uint32{}})
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	e.Apply([]export.Change{{Object: ns}, {Object: onePod("p1", "10.1.0.1")}, {Object: onePod("p2", "10.1.0.2")}})
	problems := e.Problems()
	if len(problems) != 1 || problems[0].Reason != export.IdentitiesExhausted {
		t.Fatalf("problems %v", problems)
	}
	e.Apply([]export.Change{{Deleted: true, Object: onePod("p1", "10.1.0.1")}})
	records := e.Apply(nil)
	if len(records) != 2 || !strings.Contains(string(records[1].Value), `"ID":500000`) {
		t.Fatalf("the waiting pod got %v", records)
	}
	if len(e.Problems()) != 0 {
		t.Fatalf("problems stay: %v", e.Problems())
	}
}

func onePod(podName, ip string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: podName, Labels: map[string]string{"app": podName}}}
	p.Status.PodIP = ip
	return p
}

// A service that is too large for a record is published with fewer backends,
// within what readers accept, and reported.
func TestOversizedService(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "big"}}
	s.Annotations = map[string]string{"service.cilium.io/global": "true"}
	changes := []export.Change{{Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}, {Object: s}}
	for i := range 60 {
		changes = append(changes, export.Change{Object: bigSlice(i)})
	}
	e := newExporter(hashed{})
	records := e.Apply(changes)
	if len(records) != 2 {
		t.Fatalf("%d records", len(records))
	}
	for _, r := range records {
		if len(r.Value) > 1<<20 {
			t.Errorf("%s has %d bytes", r.Key, len(r.Value))
		}
		if !strings.Contains(string(r.Value), "10.1.0.9") {
			t.Errorf("%s lost a ready backend that fits", r.Key)
		}
	}
	if p := e.Problems(); len(p) != 2 || p[0].Reason != export.TooLarge {
		t.Errorf("problems %v", p)
	}
}

func bigSlice(i int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("big-%03d", i)}}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: "big"}
	port := int32(8080)
	s.Ports = []discoveryv1.EndpointPort{{Port: &port}}
	for j := range 100 {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.1.%d.%d", i, j)}})
	}
	return s
}
