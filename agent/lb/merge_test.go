package lb_test

import (
	"bufio"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/clustermesh/clustermesh/agent/lb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestMergeGolden merges the service of every testdata file and compares the
// formatted tables with the file's want section.
func TestMergeGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d golden files, error %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil || len(a.Files) != 2 {
		t.Fatalf("%d sections, error %v", len(a.Files), err)
	}
	got := lb.Format(lb.Merge(parseService(t, string(a.Files[0].Data))))
	if *update {
		a.Files[1].Data = []byte(got)
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(a.Files[1].Data); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

// parseService reads lines "affinity A", "frontend ADDR PROTO [NAME]",
// "backend ADDR PROTO local|remote ID STATE [NAME,NAME] [zone=Z] [here]",
// "annotation NAME VALUE", "lost CLUSTER SECONDS", "spilling ADDR PROTO MASK" and
// those of parseNode.
func parseService(t *testing.T, text string) lb.Service {
	s := lb.Service{Name: lb.ServiceName{Namespace: "shop", Name: "cart"}, Lost: map[string]uint32{}}
	annotations := map[string]string{}
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		switch {
		case len(f) == 2 && f[0] == "affinity":
			s.Affinity = oneOf(t, f[1], lb.AffinityNone, lb.AffinityLocal, lb.AffinityRemote)
		case len(f) >= 3 && f[0] == "frontend":
			s.Frontends = append(s.Frontends, parseFrontend(t, f))
		case len(f) >= 6 && f[0] == "backend":
			s.Backends = append(s.Backends, parseBackend(t, f))
		case len(f) >= 3 && f[0] == "annotation":
			annotations[f[1]] = strings.Join(f[2:], " ")
		case len(f) == 3 && f[0] == "lost":
			s.Lost[f[1]] = parseNumber(t, f[2])
		case len(f) == 4 && f[0] == "spilling":
			s.Previous = append(s.Previous, lb.FrontendTable{Frontend: parseFrontend(t, f[:3]), Spilling: parseNumber(t, f[3])})
		default:
			parseNode(t, &s, f)
		}
	}
	var wrong []*lb.AnnotationError
	if s.Policy, wrong = lb.ParsePolicy(annotations); len(wrong) > 0 {
		t.Fatal(wrong[0])
	}
	return s
}

// parseNode reads "zone Z", "session SECONDS", "distribution D" and "node-only".
func parseNode(t *testing.T, s *lb.Service, f []string) {
	switch {
	case len(f) == 2 && f[0] == "zone":
		s.Zone = f[1]
	case len(f) == 2 && f[0] == "session":
		s.SessionAffinity = parseNumber(t, f[1])
	case len(f) == 2 && f[0] == "distribution":
		s.Distribution = lb.ParseDistribution(f[1])
	case len(f) == 1 && f[0] == "node-only":
		s.NodeOnly = true
	default:
		t.Fatalf("bad line %q", f)
	}
}

func parseNumber(t *testing.T, text string) (n uint32) {
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func parseFrontend(t *testing.T, f []string) lb.Frontend {
	return lb.Frontend{Addr: netip.MustParseAddrPort(f[1]), Protocol: oneOf(t, f[2], lb.TCP, lb.UDP, lb.SCTP), PortName: strings.Join(f[3:], "")}
}

func parseBackend(t *testing.T, f []string) lb.Backend {
	b := lb.Backend{
		Addr: netip.MustParseAddrPort(f[1]), Protocol: oneOf(t, f[2], lb.TCP, lb.UDP, lb.SCTP),
		Local: f[3] == "local", State: oneOf(t, f[5], lb.Active, lb.Terminating, lb.NotReady, lb.Quarantined, lb.Maintenance),
		Cluster: "c" + f[4], ClusterID: uint16(parseNumber(t, f[4])),
	}
	for _, word := range f[6:] {
		if zone, ok := strings.CutPrefix(word, "zone="); ok {
			b.Zone = zone
		} else if word == "here" {
			b.Here = true
		} else {
			b.Names = strings.Split(word, ",")
		}
	}
	return b
}

func oneOf[T fmt.Stringer](t *testing.T, s string, values ...T) T {
	for _, v := range values {
		if v.String() == s {
			return v
		}
	}
	t.Fatalf("%q is none of %v", s, values)
	panic("unreachable")
}

// TestFormatIsSorted checks that the order of the tables does not show.
func TestFormatIsSorted(t *testing.T) {
	table := func(name, addr string) lb.FrontendTable {
		return lb.FrontendTable{Service: lb.ServiceName{Namespace: "n", Name: name},
			Frontend: lb.Frontend{Addr: netip.MustParseAddrPort(addr), Protocol: lb.TCP}}
	}
	a, b, c := table("a", "10.0.0.2:1"), table("a", "10.0.0.10:1"), table("b", "10.0.0.1:1")
	want := "n/a 10.0.0.2:1/TCP affinity=none\nn/a 10.0.0.10:1/TCP affinity=none\nn/b 10.0.0.1:1/TCP affinity=none\n"
	for _, order := range [][]lb.FrontendTable{{a, b, c}, {c, b, a}, {b, c, a}} {
		if got := lb.Format(order); got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
	}
}

// TestUnknownValuesPrint checks that values from newer versions are readable.
func TestUnknownValuesPrint(t *testing.T) {
	got := fmt.Sprint(lb.Protocol(250), lb.Affinity(9), lb.State(7), lb.OnWithdraw(9))
	if got != "250 affinity-9 state-7 on-withdraw-9" {
		t.Errorf("got %q", got)
	}
}
