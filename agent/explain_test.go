package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/report"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

func (s *simulation) explain(r *api.ExplainRequest) (out *api.ExplainResponse, err error) {
	_ = s.agent.core.do(s.t.Context(), func(c *core) { out, err = c.explain(r) })
	return out, err
}

func (s *simulation) mustExplain(r *api.ExplainRequest) *api.ExplainResponse {
	s.t.Helper()
	out, err := s.explain(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// TestExplainAService: every backend with its decision, each cluster's share,
// and what was refused of it, with the key and a remedy.
func TestExplainAService(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80", "169.254.169.254:80")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
	s.awaitState("west", "synced", "")
	got := s.mustExplain(&api.ExplainRequest{Namespace: "ns", Name: "s1"})
	e := got.GetServices()[0]
	if !e.GetGlobal() || len(e.GetClusters()) != 2 || len(e.GetFindings()) != 0 || len(e.GetFrontends()) != 1 {
		t.Fatalf("explanation %v", e)
	}
	for _, b := range e.GetFrontends()[0].GetBackends() {
		if !b.GetSelected() || b.GetReason() == "" || b.GetCluster() == "" {
			t.Errorf("backend %v", b)
		}
	}
	if len(got.GetRefused()) != 1 {
		t.Fatalf("refused %v", got.GetRefused())
	}
	r := got.GetRefused()[0]
	if r.GetCluster() != "east" || r.GetKey() != schema.ServiceKey("east", "ns", "s1") || r.GetReason() != "address" ||
		r.GetAddresses()[0] != "169.254.169.254" || !strings.Contains(r.GetText(), "169.254.0.0/16") || r.GetRemedy() == "" {
		t.Errorf("refused %v", r)
	}
}

// TestExplainNothing: why a service is not used, and why nothing is known of it.
func TestExplainNothing(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	s.say("east", "s2", "10.2.0.1:80")
	s.await(frontend())
	s.awaitState("east", "synced", "")
	s.awaitState("west", "synced", "")
	s.clusters["east"].write(schema.ServiceKey("east", "ns", "s3"), []byte("{"))
	s.awaitCluster("east", "refused", func(c *api.Cluster) bool { return len(c.GetRejections()) > 0 })
	for name, want := range map[string]string{
		"s1": "no cluster offers a backend",
		"s2": "no global service of this cluster",
		"s3": "no cluster has a global service ns/s3",
		"s4": "no cluster has a global service ns/s4",
	} {
		got := s.mustExplain(&api.ExplainRequest{Namespace: "ns", Name: name})
		text := strings.Join(got.GetFindings(), "\n")
		for _, e := range got.GetServices() {
			text += strings.Join(e.GetFindings(), "\n")
		}
		if !strings.Contains(text, want) {
			t.Errorf("%s: %q does not say %q", name, text, want)
		}
		if (name == "s3") != (len(got.GetRefused()) == 1) {
			t.Errorf("%s: refused %v", name, got.GetRefused())
		}
	}
	s.clusters["west"].down.Store(true)
	s.clusters["west"].BreakWatches(nil)
	s.awaitState("west", "stale", "")
	got := s.mustExplain(&api.ExplainRequest{Namespace: "ns", Name: "s4"})
	if text := strings.Join(got.GetFindings(), "\n"); !strings.Contains(text, "cluster west is stale") {
		t.Errorf("%q does not tell that west is away", text)
	}
}

// TestExplainAnAddress: which services have it, who was refused it, and who may
// not name it.
func TestExplainAnAddress(t *testing.T) {
	s := peered(t, nil)
	s.peer("west", "accepts: {pod-cidrs: [10.3.0.0/16], namespaces: [ns]}")
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80", "10.3.0.9:80")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
	for address, want := range map[string]int{"10.2.0.1": 1, "10.96.0.49": 1, "10.3.0.9": 0} {
		if got := s.mustExplain(&api.ExplainRequest{Address: address}); len(got.GetServices()) != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	got := s.mustExplain(&api.ExplainRequest{Address: "10.3.0.9", Port: 80})
	text := strings.Join(got.GetFindings(), "\n")
	if len(got.GetRefused()) != 1 || !strings.Contains(text, "belongs to another cluster than east") || !strings.Contains(text, "no service has this address") {
		t.Errorf("%q, refused %v", text, got.GetRefused())
	}
	s.awaitState("west", "synced", "") // again, since its file changed
	got = s.mustExplain(&api.ExplainRequest{Address: "10.3.0.10"})
	if text := strings.Join(got.GetFindings(), "\n"); strings.Contains(text, "west") {
		t.Errorf("west may not name it: %q", text)
	}
	for _, bad := range []*api.ExplainRequest{{Address: "nonsense"}, {Address: "10.0.0.1", Port: 65536}} {
		if _, err := s.explain(bad); err == nil {
			t.Errorf("%v is answered", bad)
		}
	}
	for _, port := range []uint32{81, 8080} {
		if got := s.mustExplain(&api.ExplainRequest{Address: "10.2.0.1", Port: port}); len(got.GetServices()) != 0 {
			t.Errorf("port %d: %v", port, got)
		}
	}
	for i := range mostServices {
		s.say("east", fmt.Sprintf("other-%03d", i), "10.2.0.1:80")
	}
	s.awaitCluster("east", "all services", func(c *api.Cluster) bool { return c.GetServices() == mostServices+1 })
	got = s.mustExplain(&api.ExplainRequest{Address: "10.2.0.1"})
	if text := strings.Join(got.GetFindings(), "\n"); len(got.GetServices()) != mostServices || !strings.Contains(text, "1 more service ") {
		t.Errorf("%d services, %q", len(got.GetServices()), text)
	}
}

// TestExplainDoesNotGuess: of a cluster that has not been heard of since the start
// nobody knows what it shares.
func TestExplainDoesNotGuess(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(s.want(all...))
	s.stop()
	s.clusters["east"].down.Store(true)
	s.start()
	s.awaitState("west", "synced", "")
	s.awaitState("east", "stale", "")
	e := s.mustExplain(&api.ExplainRequest{Namespace: "ns", Name: "s1"}).GetServices()[0]
	if text := fmt.Sprint(e.GetFindings()); strings.Contains(text, "in one cluster only") {
		t.Errorf("east's backends are in use: %q", text)
	}
	s.say("home", "s2", "10.1.0.2:80")
	s.await(s.want(all...))
	e = s.mustExplain(&api.ExplainRequest{Namespace: "ns", Name: "s2"}).GetServices()[0]
	if text := fmt.Sprint(e.GetFindings()); !strings.Contains(text, "in one cluster only: of west none") {
		t.Errorf("of east nothing is known: %q", text)
	}
}

// TestExplainParts: revision and age of what each cluster says, what is not
// shared, what is in one cluster only, and ports without a frontend.
func TestExplainParts(t *testing.T) {
	s := newSimulation(t)
	s.clusters["home"].adjust = func(l *schema.LocalService) {
		l.Shared = l.Name != "s2"
		l.Frontends[0].PortName = "http"
		for i := range l.Backends {
			l.Backends[i].PortNames = []string{map[bool]string{true: "http", false: "web"}[l.Name != "s3"]}
		}
	}
	s.say("home", "s1", "10.1.0.1:80")
	s.say("home", "s2", "10.1.0.2:80")
	s.say("home", "s3", "10.1.0.3:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(strings.Replace(s.want(all...), "[10.1.0.3:80]", "[]", 1))
	s.awaitState("east", "synced", "")
	s.awaitState("west", "synced", "") // which has nothing to say
	for name, want := range map[string]string{
		"s1": "",
		"s2": "not shared: other clusters do not get the backends of cluster home",
		"s3": "port names differ: of cluster home 1 backend is not used, for the ports there are web/TCP and the service's own are http/TCP",
	} {
		e := s.mustExplain(&api.ExplainRequest{Namespace: "ns", Name: name}).GetServices()[0]
		text := strings.Join(e.GetFindings(), "\n")
		if !strings.Contains(text, want) || strings.Contains(text, "in one cluster only: of east, west none shares") != (name != "s1") {
			t.Errorf("%s: %q lacks %q, or says wrongly where it is", name, text, want)
		}
		if (len(e.GetUnmatched()) == 1) != (name == "s3") {
			t.Errorf("%s: unmatched %v", name, e.GetUnmatched())
		}
		for _, c := range e.GetClusters() {
			if c.GetRevision() == 0 || c.GetAgeSeconds() < 0 || c.GetUnshared() != (name == "s2") {
				t.Errorf("%s: share %v", name, c)
			}
		}
	}
}

// TestFindingsAreShort: of thousands of ports that another cluster names and
// nobody asked for, each line has a few.
func TestFindingsAreShort(t *testing.T) {
	s := lb.Service{Name: lb.ServiceName{Namespace: "ns", Name: "s1"},
		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: lb.TCP, PortName: "http"}}}
	for i := range 5000 {
		b := lb.Backend{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.3.0.1"), uint16(i+1)), Protocol: lb.TCP, Cluster: "west"}
		for k := range 64 {
			b.Names = append(b.Names, fmt.Sprintf("%04d-%02d-%s", i, k, strings.Repeat("n", 55)))
		}
		s.Backends = append(s.Backends, b)
	}
	got := portFindings(&s)
	if len(got) != 1 || len(got[0]) > 8<<10 || !strings.Contains(got[0], "5000 backends are not used") || !strings.Contains(got[0], "and 56 more/TCP and 4992 more") {
		t.Errorf("%d lines: %.400s", len(got), strings.Join(got, "\n"))
	}
}

// TestProvisionalIsShown: an agent that was restarted while a cluster is away
// counts what it has of it from the maps, and marks each backend, until the
// cluster is heard again.
func TestProvisionalIsShown(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80", "10.2.0.2:80")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80", "10.2.0.2:80"))
	s.clusters["east"].down.Store(true)
	s.clusters["east"].BreakWatches(nil)
	s.stop()
	s.start()
	s.awaitState("home", "synced", "")
	s.awaitCluster("east", "two provisional backends", func(c *api.Cluster) bool {
		return c.GetState() == "stale" && c.GetServices() == 0 && c.GetBackends() == 0 && c.GetProvisionalServices() == 1 && c.GetProvisionalBackends() == 2
	})
	var reported *report.NodeReport
	_ = s.agent.core.do(t.Context(), func(c *core) { reported = c.report() })
	for _, c := range reported.GetClusters() {
		if (c.GetProvisionalBackends() == 2) != (c.GetName() == "east") || (c.GetProvisionalServices() == 1) != (c.GetName() == "east") {
			t.Errorf("reported: %v", c)
		}
	}
	provisional := func(where string, list []*api.Backend, want bool) {
		t.Helper()
		if len(list) != 3 {
			t.Errorf("%s: %v, want three backends", where, list)
		}
		for _, b := range list {
			if b.GetProvisional() != (want && b.GetCluster() == "east") || b.GetState() != "active" || !b.GetSelected() {
				t.Errorf("%s: %v", where, b)
			}
		}
	}
	provisional("services", s.services().GetServices()[0].GetBackends(), true)
	provisional("explain", s.mustExplain(&api.ExplainRequest{Namespace: "ns", Name: "s1"}).GetServices()[0].GetFrontends()[0].GetBackends(), true)
	s.clusters["east"].down.Store(false)
	s.awaitCluster("east", "all said", func(c *api.Cluster) bool {
		return c.GetState() == "synced" && c.GetBackends() == 2 && c.GetProvisionalServices() == 0 && c.GetProvisionalBackends() == 0
	})
	provisional("services", s.services().GetServices()[0].GetBackends(), false)
}
