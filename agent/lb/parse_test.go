package lb_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/cost"
)

func TestParsePolicy(t *testing.T) {
	for _, tt := range []struct {
		name, value string
		want        lb.Policy
	}{
		{"tiers", "local; eu-west,eu-central; *", lb.Policy{Tiers: [][]string{{"local"}, {"eu-west", "eu-central"}, {"*"}}}},
		{"tiers", "local; nearest ;*", lb.Policy{Tiers: [][]string{{"local"}, {"nearest"}, {"*"}}}},
		{"tiers", " a ", lb.Policy{Tiers: [][]string{{"a"}}}},
		{"tiers", "  ", lb.Policy{}},
		{"weights", "east=3,west=1", lb.Policy{Weights: []lb.ClusterWeight{{Cluster: "east", Weight: 3}, {Cluster: "west", Weight: 1}}}},
		{"weights", " local = 0 , * = 10000 ", lb.Policy{Weights: []lb.ClusterWeight{{Cluster: "local"}, {Cluster: "*", Weight: 10000}}}},
		{"weights", "", lb.Policy{}},
		{"spillover", "min=3", lb.Policy{Spillover: lb.Spillover{Backends: 3}}},
		{"spillover", "min=50%", lb.Policy{Spillover: lb.Spillover{Percent: 50}}},
		{"spillover", "hysteresis=10% , min = 100%", lb.Policy{Spillover: lb.Spillover{Percent: 100, Hysteresis: 10}}},
		{"spillover", "min=2, ramp=30s", lb.Policy{Spillover: lb.Spillover{Backends: 2, Ramp: 30}}},
		{"spillover", "ramp=1h,min=50%,hysteresis=5%", lb.Policy{Spillover: lb.Spillover{Percent: 50, Hysteresis: 5, Ramp: 3600}}},
		{"spillover", "", lb.Policy{}},
		{"staleness", "keep", lb.Policy{}},
		{"staleness", "demote:5m", lb.Policy{Staleness: lb.Staleness{DemoteAfter: 300}}},
		{"staleness", "withdraw:30m", lb.Policy{Staleness: lb.Staleness{WithdrawAfter: 1800}}},
		{"staleness", "withdraw:2h, demote:90s", lb.Policy{Staleness: lb.Staleness{DemoteAfter: 90, WithdrawAfter: 7200}}},
		{"staleness", "withdraw:365d", lb.Policy{Staleness: lb.Staleness{WithdrawAfter: 365 * 24 * 3600}}},
		{"consistent", "True", lb.Policy{Consistent: true}},
		{"consistent", "false", lb.Policy{}},
		{"on-withdraw", "keep", lb.Policy{}},
		{"on-withdraw", "drain", lb.Policy{OnWithdraw: lb.WithdrawDrain, Drain: 30}},
		{"on-withdraw", "drain:2m", lb.Policy{OnWithdraw: lb.WithdrawDrain, Drain: 120}},
		{"on-withdraw", "reset", lb.Policy{OnWithdraw: lb.WithdrawReset}},
	} {
		got, wrong := lb.ParsePolicy(map[string]string{tt.name: tt.value})
		if len(wrong) > 0 || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s %q: %+v, %v", tt.name, tt.value, got, wrong)
		}
	}
}

// TestParsePolicyReports: a wrong annotation counts as absent and is reported
// with its name, its value and a remedy.
func TestParsePolicyReports(t *testing.T) {
	for _, tt := range []struct{ name, value, remedy string }{
		{"tiers", "local;;*", `"" is no cluster`},
		{"tiers", "local,", `"" is no cluster`},
		{"tiers", "local; East", `"East" is no cluster`},
		{"tiers", "a b", `"a b" is no cluster`},
		{"tiers", "-a", `"-a" is no cluster`},
		{"tiers", strings.Repeat("a", 64), "is no cluster"},
		{"tiers", "a;b;a", `"a" occurs twice`},
		{"tiers", "nearest; nearest", `"nearest" occurs twice`},
		{"tiers", "local, nearest", "write it alone"},
		{"tiers", "nearest,", "write it alone"},
		{"tiers", "a;b;c;d;e;f;g;h;i;j;k;l;m;n;o;p;q", "at most 16 tiers"},
		{"tiers", strings.Repeat("a", 1025), "at most 1024 bytes"},
		{"weights", "east", "write east=N with N from 0 to 10000"},
		{"weights", "east=-1", "write east=N"},
		{"weights", "east=10001", "write east=N"},
		{"weights", "east=1=2", "write east=N"},
		{"weights", "east=1,east=2", "occurs twice"},
		{"weights", "nearest=1", "it has no weight"},
		{"weights", "=1", `"" is no cluster`},
		{"weights", "east=0,west=0", "a weight above 0"},
		{"spillover", "3", "write min=N"},
		{"spillover", "min=0", "write min=N"},
		{"spillover", "min=101%", "write min=N"},
		{"spillover", "min=65536", "write min=N"},
		{"spillover", "hysteresis=1%", "write min=N"},
		{"spillover", "min=1,hysteresis=1", "write min=N"},
		{"spillover", "min=1,hysteresis=101%", "write min=N"},
		{"spillover", "min=1,min=1%", "write min=N"},
		{"spillover", "min=1,hysteresis=1%,hysteresis=2%", "write min=N"},
		{"spillover", "ramp=30s", "write min=N"},
		{"spillover", "min=1,ramp=9s", "T from 10s to 1h"},
		{"spillover", "min=1,ramp=2h", "T from 10s to 1h"},
		{"spillover", "min=1,ramp=30", "T from 10s to 1h"},
		{"spillover", "min=1,ramp=30s,ramp=40s", "write min=N"},
		{"staleness", "demote", "write keep"},
		{"staleness", "demote:5", "write keep"},
		{"staleness", "demote:m", "write keep"},
		{"staleness", "demote:0m", "write keep"},
		{"staleness", "drop:5m", "write keep"},
		{"staleness", "keep,demote:5m", "write keep"},
		{"staleness", "demote:5m,demote:6m", "write keep"},
		{"staleness", "demote:5m,withdraw:5m", "write keep"},
		{"staleness", "withdraw:366d", "write keep"},
		{"staleness", "withdraw:4294967295d", "write keep"},
		{"consistent", "yes", "write true or false"},
		{"on-withdraw", "Drain", "write keep, drain, drain:2m or reset"},
		{"on-withdraw", "drain:", "write keep, drain, drain:2m or reset"},
		{"on-withdraw", "drain:0s", "write keep, drain, drain:2m or reset"},
		{"on-withdraw", "reset:5s", "write keep, drain, drain:2m or reset"},
		{"tier", "local", "no such annotation is known"},
	} {
		got, wrong := lb.ParsePolicy(map[string]string{tt.name: tt.value})
		if len(wrong) != 1 || !reflect.DeepEqual(got, lb.Policy{}) {
			t.Errorf("%s %q: %+v, %v", tt.name, tt.value, got, wrong)
			continue
		}
		if w := wrong[0]; w.Annotation != "clustermesh.io/"+tt.name || !strings.HasPrefix(tt.value, strings.TrimSuffix(w.Value, "...")) || !strings.Contains(w.Remedy, tt.remedy) {
			t.Errorf("%s %q is reported as %q", tt.name, tt.value, w)
		}
	}
}

// TestParsePolicyKeepsTheRest: the others of several annotations count, and the
// reports are in order.
func TestParsePolicyKeepsTheRest(t *testing.T) {
	p, wrong := lb.ParsePolicy(map[string]string{"weights": "east=3", "tiers": "local;", "staleness": "5m", "consistent": "true"})
	if len(wrong) != 2 || wrong[0].Annotation != "clustermesh.io/staleness" || wrong[1].Annotation != "clustermesh.io/tiers" {
		t.Errorf("reported %v", wrong)
	}
	want := `read annotation clustermesh.io/tiers: value "local;" is ignored; "" is no cluster: write names of clusters, local for this one, * for every other or, in tiers, nearest`
	if got := wrong[1].Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !p.Consistent || len(p.Weights) != 1 || p.Tiers != nil {
		t.Errorf("kept %+v", p)
	}
}

// FuzzParsePolicy: what is accepted is within its bounds and can be merged.
func FuzzParsePolicy(f *testing.F) {
	for _, seed := range []string{"local; c2,c3; *", "local; nearest; *", "c1=3,*=1", "min=50%,hysteresis=10%", "demote:5m,withdraw:30m", "true", "drain"} {
		f.Add("tiers", seed)
		f.Add("weights", seed)
		f.Add("spillover", seed)
		f.Add("staleness", seed)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		var p lb.Policy
		var wrong []*lb.AnnotationError
		cost.Bounded(t, len(name)+len(value), 0, func() { p, wrong = lb.ParsePolicy(map[string]string{name: value}) })
		if len(wrong) > 0 && !reflect.DeepEqual(p, lb.Policy{}) {
			t.Fatalf("%v, but %+v", wrong[0], p)
		}
		if len(p.Tiers) > 16 || p.Spillover.Percent > 100 || p.Spillover.Hysteresis > 100 || p.Staleness.DemoteAfter > 365*24*3600 {
			t.Fatalf("out of bounds: %+v", p)
		}
		s := regions(3, 2)
		s.Policy, s.Lost = p, map[string]uint32{"c2": 1 << 31}
		s.Ranks = map[string]uint8{"c2": 255, "c3": 0}
		if selected := len(shares(lb.Merge(s)[0])); selected == 0 && len(p.Tiers) == 0 {
			t.Fatalf("%+v selects nothing", p)
		}
	})
}
