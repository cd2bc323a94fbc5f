package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

const guide = "../docs/install.md"

var (
	// guideHeading begins a section of the guide.
	guideHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	// guideBlock is a block of code in it; commands are those of no language.
	guideBlock = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	// needsPods are commands that wait for pods or enter them, and no kubelet runs
	// here: TestInstall runs the pods' containers.
	needsPods = regexp.MustCompile(` rollout status | exec `)
	// notTyped are commands that bring the programs to the path, which are there.
	notTyped = regexp.MustCompile(`^(make build|export PATH=.*)$`)
)

// guideLines are the commands of a section of the guide, up to the next heading.
func guideLines(t *testing.T, heading string) []string {
	t.Helper()
	text := readFile(guide)
	at := slices.IndexFunc(guideHeading.FindAllStringSubmatch(text, -1), func(m []string) bool { return m[1] == heading })
	if at < 0 {
		t.Fatalf("%s has no section %q", guide, heading)
	}
	places := append(guideHeading.FindAllStringIndex(text, -1), []int{len(text), len(text)})
	var out []string
	for _, block := range guideBlock.FindAllStringSubmatch(text[places[at][1]:places[at+1][0]], -1) {
		for line := range strings.Lines(block[2]) {
			line = strings.TrimSpace(line)
			if block[1] == "" && line != "" && !needsPods.MatchString(line) && !notTyped.MatchString(line) {
				out = append(out, line)
			}
		}
	}
	if len(out) < 2 {
		t.Fatalf("section %q of %s has only the commands %q", heading, guide, out)
	}
	return out
}

var bothClusters = []string{"east", "west"}

// as has the guide's commands, which are cluster east's, be those of a cluster,
// and puts what a reader has to know in the place of the guide's words for it.
func as(cluster string, lines ...string) []string {
	text := strings.NewReplacer("ADDRESS", "192.0.2.15", "THEIRS", "192.0.2.25", "HERE", "127.0.0.1", "OTHER", "west").Replace(strings.Join(lines, "\n"))
	if cluster == "west" {
		text = strings.NewReplacer("cluster.name=east", "cluster.name=west", "cluster.id=1", "cluster.id=2", "--cluster east", "--cluster west",
			"server-east", "server-west", "local-east", "local-west", "{west}", "{east}", "disconnect west", "disconnect east",
			"clustermesh-west", "clustermesh-east").Replace(text)
	}
	return strings.Split(text, "\n")
}

// guideWorld is what the guide is typed in: one directory for each of two
// clusters, from which the chart is found, and helm, kubectl and clustermesh in
// the path.
type guideWorld struct {
	dir     string
	written strings.Builder
}

func newGuideWorld(t *testing.T) *guideWorld {
	t.Helper()
	must(t, lab.Settle())
	g := &guideWorld{dir: scratch(t)}
	l, err := lab.New(g.dir)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, os.MkdirAll(filepath.Join(g.dir, "bin"), 0o755))
	for name, program := range map[string]string{"helm": "operator", "kubectl": "operator", "clustermesh": "clustermesh"} {
		must(t, os.Symlink(binary(program), filepath.Join(g.dir, "bin", name)))
	}
	deploy, err := filepath.Abs("../deploy")
	must(t, err)
	for i, name := range bothClusters {
		must(t, os.MkdirAll(filepath.Join(g.dir, name), 0o755))
		must(t, os.Symlink(deploy, filepath.Join(g.dir, name, "deploy")))
		_, err = kube.Start(t.Context(), l, kube.Config{
			Name: name, Binary: binary("kube"), ServiceCIDRs: []string{fmt.Sprintf("10.%d.0.0/16", 96+i)}, FirstPort: 20100 + 100*i,
		})
		must(t, err)
	}
	return g
}

// prelude is what the shell knows besides the guide: how to change over to a
// cluster, all that an API server has, and demands on the answers.
const prelude = `set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
in_cluster() { export KUBECONFIG=$DIR/kube-$1/kubeconfig; cd $DIR/$1; }
all() {
    kubectl get -A --ignore-not-found --no-headers -o custom-columns=K:.kind,S:.metadata.namespace,N:.metadata.name \
        $(kubectl api-resources --verbs=list -o name | grep -v -e '^events' -e '^componentstatuses$' -e '^leases' | paste -sd,) 2>/dev/null | sort -u
}
same() { [[ $2 == "$3" ]] || { printf '%s is\n%s\nand has to be\n%s\n' "$1" "$2" "$3" >&2; exit 1; }; }
secrets() { kubectl -n clustermesh get secrets --field-selector type!=helm.sh/release.v1 -o name | sed s,secret/,, | sort | xargs; }
added() { all | comm -13 before -; }
clean() {
    for i in $(seq 60); do [ -n "$(added)" ] || return 0; sleep 0.1; done
    same "what is new in $PWD" "$(added)" ""
}
`

func (g *guideWorld) types(cluster string, lines ...string) {
	fmt.Fprintf(&g.written, "in_cluster %s\n%s\n", cluster, strings.Join(lines, "\n"))
}

// run has one shell do all that was written, and fails where a command does.
func (g *guideWorld) run(t *testing.T) {
	t.Helper()
	script := filepath.Join(g.dir, "typed")
	must(t, os.WriteFile(script, []byte(prelude+g.written.String()), 0o600))
	cmd := exec.CommandContext(t.Context(), "bash", "-x", script)
	cmd.Env = append(os.Environ(), "DIR="+g.dir, "HOME="+g.dir, "PATH="+filepath.Join(g.dir, "bin")+":"+os.Getenv("PATH"))
	cmd.WaitDelay = stopLimit // whatever the shell left
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v at the end of\n%s", err, out[max(0, len(out)-6000):])
	}
}

// TestGuide types the Helm part of docs/install.md, with the real helm and
// kubectl, against two real control planes: all that it installs is there, and
// in the end neither API server has anything that it had not before.
func TestGuide(t *testing.T) {
	requireLab(t)
	if _, err := os.Stat(binary("operator")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: make operator", err)
		}
		t.Skipf("%v: make operator", err)
	}
	g := newGuideWorld(t)
	for _, c := range bothClusters {
		g.types(c, "all >before")
		g.types(c, as(c, guideLines(t, "Helm")...)...)
		g.types(c, `same secrets "$(secrets)" "clustermesh-ca clustermesh-local-cert clustermesh-server-cert"`,
			`same workloads "$(kubectl -n clustermesh get deployment,daemonset -o name | sed s,.*/,, | sort | xargs)" "clustermesh-agent clustermesh-apiserver clustermesh-sockets"`)
	}
	g.join(t)
	for _, c := range bothClusters {
		g.types(c, as(c, guideLines(t, "A first service, and a failover")...)...)
		g.types(c, `same annotations "$(kubectl get service rebel-base -o 'jsonpath={.metadata.annotations.service\.cilium\.io/global}')" true`,
			"kubectl delete deployment,service rebel-base")
	}
	for _, c := range bothClusters {
		g.types(c, as(c, guideLines(t, "Remove")...)...)
		g.types(c, "kubectl delete namespace clustermesh", "clean")
	}
	g.run(t)
}

// join types how two clusters join and part, of which one half is typed in each.
func (g *guideWorld) join(t *testing.T) {
	t.Helper()
	lines := guideLines(t, "Join another cluster")
	if len(lines) != 5 {
		t.Fatalf("joining and parting are %d commands: %q", len(lines), lines)
	}
	upgrade, invite, join, part := lines[0], lines[1], lines[2], lines[3:5]
	for _, c := range bothClusters {
		g.types(c, as(c, upgrade, "kubectl -n clustermesh get daemonset clustermesh-agent -o yaml | grep 'name: clustermesh-west'")...)
	}
	g.types("east", as("east", strings.Replace(invite, " | ", " 2>invite.log | ", 1)+" &", "for i in $(seq 300); do grep -q accepting invite.log && break; sleep 0.1; done")...)
	g.types("west", as("east", strings.Replace(join, "TOKEN", "$(head -1 ../east/invite.log)", 1), "wait $!")...)
	for _, c := range bothClusters {
		g.types(c, as(c, `same secrets "$(secrets)" "$(echo clustermesh-ca clustermesh-local-cert clustermesh-peers clustermesh-server-cert clustermesh-west | xargs -n1 | sort | xargs)"`)...)
		g.types(c, as(c, part...)...)
		g.types(c, `same secrets "$(secrets)" "clustermesh-ca clustermesh-local-cert clustermesh-peers clustermesh-server-cert"`,
			"helm upgrade clustermesh deploy/helm/clustermesh -n clustermesh --reuse-values --set-json 'clusters=[]'")
	}
}
