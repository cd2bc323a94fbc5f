package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/clustermesh/clustermesh/agent/api"
	apiserverapi "github.com/clustermesh/clustermesh/apiserver/api"
)

func TestWhatCanBeExplained(t *testing.T) {
	for text, want := range map[string]string{
		"shop/cart":          "shop/cart  0",
		"10.3.0.17":          "/ 10.3.0.17 0",
		"10.3.0.17:8080":     "/ 10.3.0.17 8080",
		"fd00::1":            "/ fd00::1 0",
		"[fd00::1]":          "/ fd00::1 0",
		"[fd00::1]:80":       "/ fd00::1 80",
		"cart":               "",
		"/cart":              "",
		"shop/":              "",
		"shop/cart/more":     "",
		"10.3.0.17:99999":    "",
		"cart.shop.svc:8080": "",
	} {
		r, err := explainRequest(text)
		if want == "" {
			if !errors.Is(err, errUsage) {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		port, _ := json.Marshal(r.GetPort())
		if got := r.GetNamespace() + "/" + r.GetName() + " " + r.GetAddress() + " " + string(port); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// TestExplanationIsShown: table and JSON hold everything the agent said, and no
// member of the JSON is ever missing.
func TestExplanationIsShown(t *testing.T) {
	v := newExplanation(&api.ExplainResponse{
		Services: []*api.Explanation{{
			Namespace: "shop", Name: "cart", Global: true, Affinity: "none", Findings: []string{"cluster north is stale"}, Nearest: "west (3.0ms)",
			Frontends: []*api.Decision{{Frontend: &api.Frontend{Address: "10.96.0.1", Port: 80, Protocol: "TCP", PortName: "http"}, Backends: []*api.Backend{
				{Address: "10.1.0.1", Port: 8080, Protocol: "TCP", Cluster: "west", State: "held", Selected: true, Reason: "active"},
				{Address: "10.1.0.2", Port: 8080, Protocol: "TCP", Cluster: "west", State: "terminating", Reason: "terminating", Provisional: true},
			}}},
			Clusters:  []*api.Share{{Cluster: "east", Local: true, State: "synced", Says: true, Unshared: true}, {Cluster: "west", State: "synced", Held: 1, Revision: 77, AgeSeconds: 61}},
			Unmatched: []*api.Backend{{Address: "10.2.0.9", Port: 8080, Protocol: "TCP", Cluster: "west", State: "active", Reason: "no-frontend"}},
		}},
		Refused:  []*api.Refused{{Cluster: "west", Key: "cilium/state/x", Reason: "address", Text: "backend 127.0.0.1 is refused", Remedy: "add the pod CIDR", Addresses: []string{"127.0.0.1"}}},
		Findings: []string{"something else"},
	})
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 1, ' ', 0)
	v.table(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"shop/cart  global service", "nearest: west (3.0ms)", "east (own)", "frontend 10.96.0.1:80/TCP http", "10.1.0.1:8080/TCP", "held", "! cluster north is stale", "! something else",
		"! refused (address): cilium/state/x of cluster west: backend 127.0.0.1 is refused", "remedy: add the pod CIDR", " 77 ", " 1m1s", "no frontend", "all passed", "terminating (provisional)", "port   no frontend has its protocol"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("table lacks %q:\n%s", want, text.String())
		}
	}
	encoded, err := json.Marshal(v)
	if err != nil || strings.Contains(string(encoded), "null") || !strings.Contains(string(encoded), `"remedy":"add the pod CIDR"`) {
		t.Errorf("%s, %v", encoded, err)
	}
	empty, err := json.Marshal(newExplanation(&api.ExplainResponse{Services: []*api.Explanation{{}}, Refused: []*api.Refused{{}}}))
	if err != nil || strings.Contains(string(empty), "null") {
		t.Errorf("%s, %v", empty, err)
	}
}

// TestExplainShowsNodes: which nodes of the clusters asked have it in their maps,
// and what the others lack.
func TestExplainShowsNodes(t *testing.T) {
	socket := serveAgent(t, &fakeAgent{})
	east := &standIn{name: "east", nodes: append(eastNodes, &apiserverapi.NodeStatus{Name: "n4", State: "reporting"}), behind: []*apiserverapi.Behind{{Node: "n4", Cluster: "west", Reason: "has 3 of 7"}}}
	got := runLine(t, "explain", "shop/cart", "--api-socket", socket, "--apiserver-socket", east.listen(t), "-o", "json")
	var v explanationView
	if err := json.Unmarshal([]byte(got.out), &v); err != nil || len(v.Nodes) != 4 {
		t.Fatalf("%v: %s%s", err, got.out, got.errors)
	}
	for i, want := range []bool{true, false, false, false} {
		if v.Nodes[i].InMaps != want || v.Nodes[i].Cluster != "east" {
			t.Errorf("%+v, want %v", v.Nodes[i], want)
		}
	}
	got = runLine(t, "explain", "shop/cart", "--api-socket", socket, "--apiserver-socket", east.listen(t))
	if !strings.Contains(got.out, "n1    east     reporting  yes          -") || !strings.Contains(got.out, "n4    east     reporting  no           west: has 3 of 7") {
		t.Errorf("%s%s", got.out, got.errors)
	}
	if got := runLine(t, "explain", "shop/cart", "--api-socket", socket, "--apiserver-socket", socket+"x"); got.code != 1 || !strings.Contains(got.errors, "check that clustermesh-apiserver runs here") {
		t.Errorf("%+v", got)
	}
}
