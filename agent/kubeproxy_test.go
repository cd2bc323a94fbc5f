package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/kvstore/cost"
)

func TestKubeProxySigns(t *testing.T) {
	const noServices = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n"
	for want, s := range map[string]proxySigns{
		"no sign of kube-proxy":                          {ipvs: noServices, legacy: "filter\n"},
		`"ipvs" by its own word, IPVS`:                   {said: "ipvs", ipvs: noServices + "TCP  0A600001:0050 rr\n"},
		"nftables (table kube-proxy); it keeps":          {chains: []nftChain{{"filter", "INPUT"}, {"kube-proxy", "services"}}},
		"iptables (chain KUBE-SERVICES); it keeps":       {chains: []nftChain{{"nat", "KUBE-SERVICES"}}},
		"perhaps iptables (a nat table of the old kind)": {legacy: "filter\nnat\n"},
	} {
		got := s.finding()
		if !strings.HasPrefix(got.Detail, want) || got.Fatal || got.OK != (got.Remedy == "") || got.OK == strings.HasPrefix(want, "no") {
			t.Errorf("want %q, got %+v", want, got)
		}
	}
}

func TestAskProxyMode(t *testing.T) {
	answer := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(answer)
		fmt.Fprint(w, "nftables")
	}))
	if got := askProxyMode(server.URL); got != "nftables" {
		t.Errorf("got %q", got)
	}
	answer = http.StatusNotFound
	if got := askProxyMode(server.URL); got != "" {
		t.Errorf("got %q of a refusal", got)
	}
	server.Close()
	if got := askProxyMode(server.URL); got != "" {
		t.Errorf("got %q of nobody", got)
	}
}

// TestListChains makes kube-proxy's table in a network namespace of its own.
func TestListChains(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil || os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root and nft")
		}
		t.Skip("needs root and nft")
	}
	chains, err := []nftChain(nil), error(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread and its namespace end here
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table ip kube-proxy {\nchain services {\n}\nchain endpoint-X {\n}\n}\ntable ip nat {\nchain KUBE-SERVICES {\n}\n}\n")
		if err = cmd.Run(); err == nil {
			chains, err = listChains()
		}
	}()
	<-done
	want := []nftChain{{"kube-proxy", "services"}, {"kube-proxy", "endpoint-X"}, {"nat", "KUBE-SERVICES"}}
	if err != nil || !slices.Equal(chains, want) {
		t.Errorf("got %v, %v, want %v", chains, err, want)
	}
}

func FuzzChainOf(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 15, 0, 1, 0, 'k', 'u', 'b', 'e', '-', 'p', 'r', 'o', 'x', 'y', 0, 0})
	f.Add([]byte{1, 0, 0, 0, 3, 0, 1, 0})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var c nftChain
		cost.Bounded(t, len(data), 0, func() { c = chainOf(data) })
		if len(c.table)+len(c.name) > len(data) {
			t.Errorf("%q is longer than %q", c, data)
		}
	})
}
