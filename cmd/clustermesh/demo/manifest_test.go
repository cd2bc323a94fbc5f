package demo

import (
	"reflect"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/deploy/examples"
)

func TestExamplesHoldOneServiceWithTwoPodsPerCluster(t *testing.T) {
	seen := map[string]bool{}
	for _, cluster := range []string{"east", "west"} {
		s := exampleService(t, cluster)
		if s.String() != "galaxy/rebel-base" || len(s.pods) != 2 {
			t.Errorf("%s: %s with pods %v", cluster, s, s.pods)
		}
		for _, addr := range []string{s.frontend.String(), s.pods[0].addr.String(), s.pods[1].addr.String()} {
			if seen[addr] {
				t.Errorf("%s: address %s is used twice", cluster, addr)
			}
			seen[addr] = true
		}
	}
}

func TestRenderKeepsTheServiceAndWithdrawsPods(t *testing.T) {
	manifests := exampleManifests(t, "east")
	for _, withdrawn := range []bool{true, false} {
		var docs []document
		for _, m := range manifests {
			text, err := m.render(withdrawn)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(string(text), "endpoints: []"); got != withdrawn {
				t.Errorf("withdrawn %v, but empty endpoints in the text: %v\n%s", withdrawn, got, text)
			}
			parsed, err := parseDocuments(text)
			if err != nil {
				t.Fatal(err)
			}
			docs = append(docs, parsed...)
		}
		s, err := findService([]manifest{{docs: docs}})
		if withdrawn {
			if err == nil || len(s.pods) != 0 || !s.frontend.IsValid() {
				t.Errorf("withdrawn: %v, %v", s, err)
			}
			continue
		}
		if want := exampleService(t, "east"); err != nil || !reflect.DeepEqual(s, want) {
			t.Errorf("rendered and read again: %+v, %v; want %+v", s, err, want)
		}
	}
}

func exampleManifests(t *testing.T, cluster string) []manifest {
	t.Helper()
	m, err := readManifests(examples.FS(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func exampleService(t *testing.T, cluster string) service {
	t.Helper()
	s, err := findService(exampleManifests(t, cluster))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
