package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"golang.org/x/sys/unix"
)

// noCapabilities is how the kernel writes an empty set.
const noCapabilities = "0000000000000000"

// checkPrivileges: no thread of an agent that root started holds a capability
// or can gain one, and the agent does its work all the same: changes arrive in
// the maps, traffic flows, and a restarted agent takes over what is pinned.
func checkPrivileges(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	f := &flips{t: t, w: w, service: "rebel-base", pods: pods, traffic: w.begin(t, ips)}
	for _, n := range w.nodes() {
		n.agent.requireBare(t, noCapabilities)
		n.agent.requirePrivatePins(t)
	}
	f.scale()
	f.annotate(w.clusters[0], affinityKey, "remote")
	f.annotate(w.clusters[0], affinityKey, "")
	w.requireUntouched(t, func() {
		for _, n := range w.nodes() {
			requireStop(t, n.agent.Process)
			n.agent.restart(t)
			n.agent.requireBare(t, noCapabilities)
		}
		w.awaitSynced(t)
	})
	f.ready(pods[w.clusters[1]][:1], false, 1)
	f.ready(pods[w.clusters[1]][:1], true, 2)
	for _, n := range w.nodes() {
		n.agent.requireBare(t, noCapabilities)
	}
	f.traffic.end(t)
}

// requireBare reads the status of every thread of an agent. The bounding set,
// which says what executing a program could give, is as told; with no_new_privs
// it gives nothing either way.
func (a *agent) requireBare(t *testing.T, bounding string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.PID()))
	must(t, err)
	if len(files) < 2 {
		t.Fatalf("%s has %d threads", a.Name, len(files))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended meanwhile
		}
		must(t, err)
		for field, want := range map[string]string{
			"CapEff": noCapabilities, "CapPrm": noCapabilities, "CapInh": noCapabilities, "CapAmb": noCapabilities,
			"CapBnd": bounding, "NoNewPrivs": "1", "Seccomp": "2",
		} {
			if line := regexp.MustCompile(`(?m)^` + field + `:\s*(\S+)$`).FindStringSubmatch(string(text)); line == nil || line[1] != want {
				t.Errorf("%s: %s: %s is %v, want %s", a.Name, file, field, line, want)
			}
		}
	}
	if text, err := fetch(a.http, "/metrics"); err != nil || !strings.Contains(text, "\nclustermesh_agent_capabilities_held 0\n") {
		t.Errorf("%s: the metric of capabilities does not say 0: %v", a.Name, err)
	}
	log := readLog(a.Process)
	if !strings.Contains(log, `msg="dropped privileges" key=none`) && !strings.Contains(log, `"msg":"dropped privileges","key":"none"`) {
		t.Errorf("%s: the log does not say that privileges were dropped", a.Name)
	}
}

// requirePrivatePins: only the agent's user gets at what is pinned.
func (a *agent) requirePrivatePins(t *testing.T) {
	t.Helper()
	info, err := os.Stat(a.pins)
	must(t, err)
	if info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("%s has mode %v", a.pins, info.Mode())
	}
	pins, err := os.ReadDir(a.pins)
	must(t, err)
	if len(pins) < 10 {
		t.Errorf("only %d pins in %s", len(pins), a.pins)
	}
	for _, p := range pins {
		info, err := p.Info()
		must(t, err)
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", p.Name(), info.Mode())
		}
	}
}

// leastPrivilege is what an agent needs to start, by number, since setpriv knows
// the names of older capabilities only: CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
const (
	leastPrivilege = "-all,+cap_12,+cap_38,+cap_39"
	leastBounding  = "000000c000001000"
)

// otherUser is an ordinary user.
const otherUser = 65532

// checkLeastPrivilege: an agent starts with three capabilities, as root without
// root's rights over files or as an ordinary user, also under the seccomp
// profile of its pod, and works like any other.
func checkLeastPrivilege(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	n := w.clusters[0].nodes[1]
	former := n.agent
	t.Run("root_on_what_is_pinned", func(t *testing.T) {
		requireStop(t, former.Process)
		former.startAs(t, 0)
		former.requireWorking(t, w, ips, pods)
	})
	t.Run("ordinary_user", func(t *testing.T) {
		requireStop(t, former.Process)
		must(t, n.maps.Close())
		n.maps = nil
		if code := former.cleanup(t); code != 0 {
			t.Errorf("cleanup ended with %d", code)
		}
		n.agent = w.ownedAgent(t, former, otherUser)
		n.agent.startAs(t, otherUser)
		n.agent.openMaps(t)
		n.agent.requireWorking(t, w, ips, pods)
		n.agent.requirePrivatePins(t)
		w.requireUntouched(t, func() {
			requireStop(t, n.agent.Process)
			n.agent.startAs(t, otherUser, n.agent.confined(t)...)
			w.awaitSynced(t)
		})
		n.agent.requireWorking(t, w, ips, pods)
		requireStop(t, n.agent.Process)
		must(t, n.maps.Close())
		n.maps = nil
		if code := n.agent.cleanup(t); code != 0 {
			t.Errorf("cleanup ended with %d", code)
		}
	})
	n.agent = former
	former.up(t)
	w.awaitSynced(t)
	w.settle(t, now)
}

// startAs starts the agent as a user with the least privilege, by another
// command if given, and waits until it is ready.
func (a *agent) startAs(t *testing.T, user int, by ...string) {
	t.Helper()
	setpriv, err := exec.LookPath("setpriv")
	must(t, err)
	args := []string{"--bounding-set", leastPrivilege, "--inh-caps", "-all"}
	if user != 0 {
		id := fmt.Sprint(user)
		args = []string{
			"--reuid", id, "--regid", id, "--clear-groups",
			"--bounding-set", leastPrivilege, "--inh-caps", leastPrivilege, "--ambient-caps", leastPrivilege,
		}
	}
	program := binary("clustermesh-agent")
	if user != 0 { // which may be out of that user's reach
		program = filepath.Join(filepath.Dir(a.socket), "clustermesh-agent")
	}
	args = slices.Concat(args, by, []string{program}, a.flags())
	p, err := a.lab.Start(lab.Spec{Name: "agent-" + a.node.name, Path: setpriv, Args: args})
	must(t, err)
	a.Process = p
	await(t, p, a.http, "/readyz")
	a.requireBare(t, leastBounding)
}

// podProfile is the seccomp profile for the agent's pod.
const podProfile = "../deploy/seccomp/clustermesh-agent.json"

// confined is the command that runs another under the profile of the agent's
// pod: all that the profile allows is allowed, with any arguments, and no more.
func (a *agent) confined(t *testing.T) []string {
	t.Helper()
	program := filepath.Join(filepath.Dir(a.socket), "confine")
	build := exec.Command("go", "build", "-o", program, "../agent/privilege/testdata/confine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build confine: %v: %s", err, out)
	}
	var profile struct {
		DefaultAction string
		Syscalls      []struct {
			Action string
			Names  []string
		}
	}
	must(t, json.Unmarshal([]byte(readFile(podProfile)), &profile))
	if profile.DefaultAction != "SCMP_ACT_ERRNO" {
		t.Errorf("what the profile does not name ends in %s", profile.DefaultAction)
	}
	known, numbers := systemCalls(t), []string{}
	for _, s := range profile.Syscalls {
		for _, name := range s.Names {
			if number := known[name]; number != "" && s.Action == "SCMP_ACT_ALLOW" {
				numbers = append(numbers, number)
			}
		}
	}
	return []string{program, strings.Join(numbers, ",")}
}

// systemCalls are the numbers of this architecture's system calls by name.
func systemCalls(t *testing.T) map[string]string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	must(t, err)
	table, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "zsysnum_linux_"+runtime.GOARCH+".go"))
	must(t, err)
	known := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\s*SYS_(\w+)\s*=\s*(\d+)$`).FindAllStringSubmatch(string(table), -1) {
		known[strings.ToLower(m[1])] = m[2]
	}
	if len(known) < 300 {
		t.Fatalf("only %d system calls are known", len(known))
	}
	return known
}

// requireWorking changes something and demands that it arrives in the maps and
// that every kind of traffic works.
func (a *agent) requireWorking(t *testing.T, w *world, ips map[*cluster][]netip.Addr, pods map[*cluster][]*workload) {
	t.Helper()
	w.awaitSynced(t)
	for _, c := range w.clusters {
		ready(t, pods[c][:1], false)
		w.settle(t, endpoints(c, "rebel-base", 1))
		ready(t, pods[c][:1], true)
		w.settle(t, endpoints(c, "rebel-base", 2))
	}
	requireWorks(t, a.node, ips)
}

// ownedAgent prepares an agent for the node of another one, with everything
// that it reads and writes owned by a user.
func (w *world) ownedAgent(t *testing.T, of *agent, user int) *agent {
	t.Helper()
	dir := filepath.Join(w.dir, "owned")
	bpffs, err := w.lab.MountBPF("owned/bpf")
	must(t, err)
	a := &agent{
		node: of.node, lab: of.lab, http: of.http, bpffs: bpffs, pins: filepath.Join(bpffs, "clustermesh"),
		clusters: filepath.Join(dir, "clusters"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "agent.sock"),
	}
	certs := filepath.Join(dir, "certs")
	must(t, os.CopyFS(certs, os.DirFS(w.certs)))
	must(t, os.MkdirAll(a.clusters, 0o700))
	own := *w
	own.certs = certs
	for _, c := range w.clusters {
		a.setCluster(t, c.name, own.clusterFile(of.node.cluster, c))
	}
	program, err := os.ReadFile(binary("clustermesh-agent"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "clustermesh-agent"), program, 0o755))
	must(t, os.Chmod(w.dir, 0o711))
	must(t, os.Chmod(bpffs, 0o711))
	must(t, os.Mkdir(a.pins, 0o700))
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != bpffs && filepath.Dir(path) != bpffs || path == a.pins {
			return os.Chown(path, user, user)
		}
		return err
	}))
	return a
}
