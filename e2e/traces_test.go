package e2e

import (
	"fmt"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// nodeState is all of a node that an installation could leave something in, by
// what it is.
type nodeState map[string]string

// networkParts are the parts of a node's network, and the commands that show them.
var networkParts = map[string]string{
	"devices":    "ip -details link show",
	"addresses":  "ip address show",
	"routes":     "ip route show table all; ip -6 route show table all",
	"rules":      "ip rule show; ip -6 rule show",
	"qdiscs":     "tc qdisc show",
	"filters":    "for side in ingress egress; do tc filter show dev eth0 $side 2>&1 || true; done",
	"nftables":   "nft list ruleset",
	"neighbours": "ip neighbour show nud permanent",
}

func (in *installation) nodeState(t *testing.T) nodeState {
	t.Helper()
	in.awaitAddresses(t)
	state := nodeState{"files": in.filesOfNode(t), "cgroups": directories(t, in.node.Cgroup)}
	for part, command := range networkParts {
		state[part] = in.shell(t, command)
	}
	programs, err := kernel.AtCgroup(in.node.Cgroup)
	must(t, err)
	state["programs at the cgroup"] = strings.Join(programs, "\n")
	must(t, in.node.Inside(func() error {
		devices, err := net.Interfaces()
		for _, d := range devices {
			at, failed := kernel.AtDevice(d.Index)
			if failed != nil {
				return failed
			}
			state["programs at devices"] += fmt.Sprintln(d.Name, at)
		}
		return err
	}))
	return state
}

// shell runs commands in the node's network namespace.
func (in *installation) shell(t *testing.T, commands string) (out string) {
	t.Helper()
	must(t, in.node.Inside(func() error {
		text, err := exec.Command("sh", "-ec", commands).CombinedOutput()
		if out = string(text); err != nil {
			return fmt.Errorf("%s: %w: %s", commands, err, text)
		}
		return nil
	}))
	return out
}

// awaitAddresses waits until the kernel has made up its mind about the addresses
// that it gives by itself.
func (in *installation) awaitAddresses(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(giveUp); strings.Contains(in.shell(t, "ip address show"), "tentative"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the node's addresses stay tentative")
		}
	}
}

// filesOfNode are all files below the directories that pods mount. The
// directories themselves are made for them, and may stay, empty.
func (in *installation) filesOfNode(t *testing.T) string {
	t.Helper()
	mounted := []string{in.bpffs, filepath.Join(in.bpffs, "clustermesh"), filepath.Join(in.dir, "run"), filepath.Join(in.dir, "netns")}
	var all []string
	for _, dir := range slices.Concat(mounted[:1], mounted[2:]) {
		all = append(all, below(t, dir, func(path string, _ fs.DirEntry) bool { return !slices.Contains(mounted, path) })...)
	}
	return strings.Join(all, "\n")
}

func directories(t *testing.T, dir string) string {
	t.Helper()
	return strings.Join(below(t, dir, func(_ string, d fs.DirEntry) bool { return d.IsDir() }), "\n")
}

func below(t *testing.T, dir string, wanted func(string, fs.DirEntry) bool) (all []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d == nil {
			return nil // there is no such directory
		}
		if wanted(path, d) {
			all = append(all, path)
		}
		return err
	}))
	return all
}

// everything lists the objects of all kinds that the API server serves. It leaves
// out Events, which expire, and what the tests make for themselves.
func (in *installation) everything(t *testing.T, wanted func(unstructured.Unstructured) bool) map[string]bool {
	t.Helper()
	served, err := in.kube.Client.Discovery().ServerPreferredResources()
	must(t, err)
	all := map[string]bool{}
	kinds := 0
	for _, list := range served {
		group, err := schema.ParseGroupVersion(list.GroupVersion)
		must(t, err)
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || r.Name == "events" {
				continue
			}
			kinds++
			objects, err := in.client.Resource(group.WithResource(r.Name)).List(live(t), metav1.ListOptions{})
			must(t, err)
			for _, o := range objects.Items {
				if !ofTests(o) && (wanted == nil || wanted(o)) {
					all[strings.Join([]string{r.Name, group.Group, o.GetNamespace(), o.GetName()}, " ")] = true
				}
			}
		}
	}
	if kinds < 40 {
		t.Errorf("the API server serves only %d kinds", kinds)
	}
	return all
}

func ofTests(o unstructured.Unstructured) bool {
	own := []string{namespace, shop, "strict"}
	return slices.Contains(own, o.GetNamespace()) || o.GetKind() == "Namespace" && slices.Contains(own, o.GetName())
}
