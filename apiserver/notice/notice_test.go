package notice

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
)

func state(change func(*export.ServiceState)) []export.ServiceState {
	s := export.ServiceState{Namespace: "shop", Name: "web", UID: "1"}
	if change != nil {
		change(&s)
	}
	return []export.ServiceState{s}
}

func exported(s *export.ServiceState) { s.Exported = true }

func wrong(message string) func(*export.ServiceState) {
	return func(s *export.ServiceState) {
		s.Exported = true
		s.Problems = append(s.Problems, export.Problem{Object: "Service shop/web", Reason: export.PortConflict, Message: message})
	}
}

func reasons(all []Notice) string {
	var words []string
	for _, n := range all {
		words = append(words, string(n.Reason))
	}
	return strings.Join(words, " ")
}

// TestTellsChanges walks one service through its life; what is said twice in a
// row is told once.
func TestTellsChanges(t *testing.T) {
	b := NewBook("east", 0)
	for i, step := range []struct {
		states []export.ServiceState
		quiet  bool
		want   string
	}{
		{state(nil), false, ""},
		{state(exported), false, "Exported"},
		{state(exported), false, ""},
		{state(wrong("a")), false, "PortConflict"},
		{state(wrong("a")), false, ""},
		{state(wrong("b")), false, "PortConflict"},
		{state(nil), false, "Withdrawn"},
		{state(func(s *export.ServiceState) { s.Hidden = true }), false, "NamespaceNotGlobal"},
		{state(func(s *export.ServiceState) { s.Hidden = true }), false, ""},
		{state(func(s *export.ServiceState) { s.Idle = []string{"service.cilium.io/shared"} }), false, "NotGlobal"},
		{state(exported), false, "Exported"},
		{state(func(s *export.ServiceState) { s.Exported, s.UID = true, "2" }), false, "Exported"},
		{[]export.ServiceState{{Namespace: "shop", Name: "web", Gone: true}}, false, ""},
		{state(exported), true, ""},
		{state(wrong("a")), true, "PortConflict"},
	} {
		if got := reasons(b.See(step.states, int64(i+1), step.quiet)); got != step.want {
			t.Errorf("step %d: told %q, want %q", i, got, step.want)
		}
	}
}

func TestForgetsWhatNeedsNoMention(t *testing.T) {
	b := NewBook("east", 60)
	b.See(state(exported), 1, false)
	b.See(state(nil), 2, false)
	if len(b.known) != 0 {
		t.Errorf("%d services are remembered", len(b.known))
	}
}

// TestNobodyImports: once per time of being alone, not before it is long enough,
// and a few at a time.
func TestNobodyImports(t *testing.T) {
	b := NewBook("east", 60)
	b.See(state(exported), 100, false)
	for _, step := range []struct {
		now       int64
		connected bool
		want      string
	}{
		{101, false, ""}, {160, false, ""}, {161, false, "NobodyImports"}, {300, false, ""},
		{301, true, ""}, {302, false, ""}, {361, false, ""}, {362, false, "NobodyImports"},
	} {
		if got := reasons(b.Readers(step.connected, step.now)); got != step.want {
			t.Errorf("at %d: told %q, want %q", step.now, got, step.want)
		}
	}
	for i := range 2*atOnce + 1 {
		b.See([]export.ServiceState{{Namespace: "many", Name: fmt.Sprint(i), UID: "1", Exported: true}}, 400, false)
	}
	var sizes []int
	for range 4 {
		sizes = append(sizes, len(b.Readers(false, 500)))
	}
	if !slices.Equal(sizes, []int{atOnce, atOnce, 1, 0}) {
		t.Errorf("told %v at a time", sizes)
	}
}

func TestReasonsAreWords(t *testing.T) {
	all := Reasons()
	if !slices.Contains(all, "InvalidAnnotation") || !slices.Contains(all, "TooLarge") || len(slices.Compact(all)) != len(all) {
		t.Errorf("reasons are %v", all)
	}
}
