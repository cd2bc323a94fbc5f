package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/conformance"
)

// gather puts everything into d. Keys come first, so that they are known in all
// that follows.
func (f *sysdumpFlags) gather(ctx context.Context, d *dump, waiting *progress) {
	subjects := f.gatherClusters(d)
	waiting.say("asking the agent")
	f.gatherAgent(ctx, d)
	waiting.say("asking for metrics")
	for name, url := range map[string]string{"agent/metrics.txt": f.agentHTTP + "/metrics", "apiserver/metrics.txt": f.apiserver + "/metrics", "apiserver/readyz.txt": f.apiserver + "/readyz"} {
		text, err := fetch(ctx, url, f.timeout)
		d.text(name, text, err)
	}
	f.gatherFindings(ctx, d, waiting, subjects)
	f.gatherFiles(d)
	gatherKernel(d)
}

// maxExplained bounds how many services are explained.
const maxExplained = 50

func (f *sysdumpFlags) gatherAgent(ctx context.Context, d *dump) {
	conn, agent, err := dialAgent(*f.node.socket)
	if err != nil {
		d.miss("agent/status.json", err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	status, err := agent.Status(ctx, &api.StatusRequest{})
	d.json("agent/status.json", newStatus(status), shortAgentError(err))
	maps, err := agent.Maps(ctx, &api.MapsRequest{})
	d.json("agent/maps.json", newMaps(maps), shortAgentError(err))
	d.json("agent/usage.json", newUsage(maps), shortAgentError(err))
	services, err := agent.Services(ctx, &api.ServicesRequest{})
	list := newServices(services)
	d.json("agent/services.json", list, shortAgentError(err))
	n := 0
	for _, s := range list {
		name := "agent/explain/" + s.Namespace + "_" + s.Name + ".json"
		if !failing(s) {
			continue
		}
		if n++; n > maxExplained {
			d.miss(name, fmt.Errorf("%d services are explained already", maxExplained))
			continue
		}
		r, err := agent.Explain(ctx, &api.ExplainRequest{Namespace: s.Namespace, Name: s.Name})
		d.json(name, newExplanation(r), shortAgentError(err))
	}
}

// failing tells services that are worth a look: with problems, or backends of
// which some or all are not used.
func failing(s serviceView) bool {
	return len(s.Problems) > 0 || len(s.Backends) == 0 || len(s.Frontends) == 0 ||
		slices.ContainsFunc(s.Backends, func(b chosenView) bool { return !b.Selected || b.Reason != "active" })
}

// clusterDump is what leads to a cluster, without what is in the files.
type clusterDump struct {
	Name        string              `json:"name"`
	Endpoints   []string            `json:"endpoints"`
	HostAliases map[string][]string `json:"hostAliases"`
	CAFile      string              `json:"caFile"`
	CertFile    string              `json:"certFile"`
	KeyFile     string              `json:"keyFile"`
	Error       string              `json:"error"`
}

// gatherClusters adds the cluster files and returns what there is to be
// troubleshot.
func (f *sysdumpFlags) gatherClusters(d *dump) []subject {
	entries, err := os.ReadDir(f.clusters)
	if err != nil {
		d.miss("clusters", err)
		return nil
	}
	found := map[string]clusterfile.File{}
	failed := map[string]error{}
	for _, e := range entries {
		path := filepath.Join(f.clusters, e.Name())
		if info, err := os.Stat(path); strings.HasPrefix(e.Name(), ".") || err == nil && !info.Mode().IsRegular() {
			continue
		}
		file, _, err := clusterfile.Read(path)
		if errors.Is(err, clusterfile.ErrNotClusterFile) {
			continue
		}
		found[e.Name()], failed[e.Name()] = file, err
		d.secrets.know(file.KeyFile)
	}
	shared := troubleshootFlags{}
	var all []subject
	for name, file := range found {
		d.json("clusters/"+name+".json", describe(name, file, failed[name]), nil)
		if failed[name] == nil {
			all = append(all, shared.fromFile(filepath.Join(f.clusters, name), true)...)
		}
	}
	slices.SortFunc(all, func(a, b subject) int {
		return strings.Compare(a.target.Cluster+a.target.Endpoint, b.target.Cluster+b.target.Endpoint)
	})
	gatherCertificates(d, found)
	return all
}

func describe(name string, file clusterfile.File, err error) clusterDump {
	out := clusterDump{
		Name: name, Endpoints: append([]string{}, file.Endpoints...), HostAliases: map[string][]string{}, CAFile: file.TrustedCAFile, CertFile: file.CertFile, KeyFile: file.KeyFile,
	}
	if err != nil {
		out.Error = err.Error()
	}
	for host, addrs := range file.Aliases() {
		for _, a := range addrs {
			out.HostAliases[host] = append(out.HostAliases[host], a.String())
		}
	}
	return out
}

// gatherCertificates adds what certificates say in public. Fingerprints and
// serial numbers look like secrets and are none.
func gatherCertificates(d *dump, files map[string]clusterfile.File) {
	seen := map[string]bool{}
	infos := []certs.Info{}
	for _, file := range files {
		for _, path := range []string{file.TrustedCAFile, file.CertFile} {
			if path == "" || seen[path] {
				continue
			}
			seen[path] = true
			found, err := certs.Inspect(path)
			if err != nil {
				d.miss("certificates.json: "+path, err)
			}
			infos = append(infos, found...)
		}
	}
	slices.SortFunc(infos, func(a, b certs.Info) int { return strings.Compare(a.File+a.Fingerprint, b.File+b.Fingerprint) })
	d.public("certificates.json", infos)
}

// gatherFindings adds what troubleshoot finds.
func (f *sysdumpFlags) gatherFindings(ctx context.Context, d *dump, waiting *progress, subjects []subject) {
	quiet := &app{stdout: io.Discard, stderr: io.Discard, format: formatJSON}
	p := quiet.findingPrinter()
	o := conformance.Options{Timeout: f.timeout}
	p.section(subject{title: "this node"}, func() { o.OwnID = f.node.check(ctx, p) })
	var seen []conformance.Seen
	o.OnSeen = func(s conformance.Seen) { seen = append(seen, s) }
	o.OnResult = func(r conformance.Result) { p.add(resultView(r)) }
	for _, s := range subjects {
		if f.withoutProbe {
			break
		}
		waiting.say("troubleshooting " + s.target.Cluster)
		p.section(s, func() { p.examine(ctx, s, o) })
	}
	p.section(subject{title: "all clusters"}, func() {
		for _, r := range conformance.Together(seen) {
			p.add(resultView(r))
		}
	})
	d.json("findings.json", p.views, nil)
}

func (f *sysdumpFlags) gatherFiles(d *dump) {
	for i, path := range f.configs {
		text, err := tail(path, maxTail)
		d.text(fmt.Sprintf("config/%d-%s", i, filepath.Base(path)), text, err)
	}
	for i, path := range f.logs {
		text, err := tail(path, maxTail)
		d.text(fmt.Sprintf("logs/%d-%s", i, filepath.Base(path)), text, err)
	}
}

// tail reads the end of a file, from the begin of a line on.
func tail(path string, most int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, fmt.Errorf("%s: not a regular file", path))
	}
	from := max(info.Size()-most, 0)
	text, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if _, rest, found := strings.Cut(string(text), "\n"); from > 0 && found {
		return rest, err
	}
	return string(text), err
}

// kernelFiles are facts about kernel and machine that hold no secret.
func kernelFiles() []string {
	return []string{
		"/proc/version", "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/etc/os-release", "/proc/self/cgroup", "/proc/net/ip_vs", "/proc/net/ip_tables_names",
		"/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/rp_filter", "/proc/sys/net/netfilter/nf_conntrack_max",
	}
}

func gatherKernel(d *dump) {
	for _, path := range kernelFiles() {
		text, err := os.ReadFile(path)
		d.text("kernel"+path+".txt", string(text), err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	var kept strings.Builder
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - cgroup") || strings.Contains(line, " - bpf ") {
			kept.WriteString(line)
		}
	}
	d.text("kernel/proc/self/mountinfo.txt", kept.String(), err)
	d.json("kernel/machine.json", map[string]any{"cpus": runtime.NumCPU(), "os": runtime.GOOS, "arch": runtime.GOARCH}, nil)
}
