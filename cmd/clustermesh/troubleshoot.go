package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/conformance"
)

// troubleshootFlags are the flags of the command.
type troubleshootFlags struct {
	node            nodeFlags
	apiserver       string
	dataDir         string
	clusters        string
	name            string
	cert, key, ca   string
	ownID, maxID    uint32
	timeout         time.Duration
	wait, askWrites bool
}

func newTroubleshoot(a *app) *cobra.Command {
	var f troubleshootFlags
	c := &cobra.Command{
		Use:   "troubleshoot [FILE|ENDPOINT...]",
		Short: "Find out what is wrong with this node, an apiserver, or the way to a cluster",
		Long: `Look for faults, point by point, and say of each its cause, what was seen and what
to do about it, in one line.

Without arguments, and with --node, this node is checked: whether its agent
answers and is ready, the state of each cluster, how full the maps are, features
of the kernel, cgroup2 and the bpf file system, and what else on the node balances
services. --apiserver asks a clustermesh-apiserver what it lacks, --data-dir looks
at its disk.

With FILE, ENDPOINT or --clusters, all that Cilium's and this product's agents
rely on in another cluster is checked: DNS, TCP, certificates and clocks, access,
paging and watches, the heartbeat, the cluster's announcement, its canaries and
every entry it publishes; and then whether ids and pod ranges of the clusters
differ. A FILE is a cluster file as in the agent's --clusters directory, named
like its cluster. An ENDPOINT is https://host:port and needs --name, --cert, --key
and --ca. A check that builds on one that did not pass is skipped, so that one
fault is one failure.

Nothing is written. In other formats than the table each finding also says what a
reader does because of it. Exit codes: 0 nothing failed, 1 something failed, 2
used wrongly.`,
		Example: "  clustermesh troubleshoot\n" +
			"  clustermesh troubleshoot --clusters /etc/clustermesh/clusters --node\n" +
			"  clustermesh troubleshoot /etc/clustermesh/clusters/west --own-id 1 --wait -o yaml\n" +
			"  clustermesh troubleshoot https://west.mesh.cilium.io:2379 --name west --cert remote.crt --key remote.key --ca ca.crt\n" +
			"  clustermesh troubleshoot --apiserver http://127.0.0.1:9962 --data-dir /var/lib/clustermesh",
		RunE: func(c *cobra.Command, args []string) error {
			f.node.on = f.node.on || len(args) == 0 && f.clusters == "" && f.apiserver == "" && f.dataDir == ""
			subjects, err := f.subjects(args)
			if err := usage(err, f.validate()); err != nil {
				return err
			}
			return a.troubleshoot(c.Context(), subjects, f)
		},
	}
	f.node.add(c)
	f.add(c)
	return c
}

func (f *troubleshootFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.apiserver, "apiserver", "", "http:// address of a clustermesh-apiserver (its --http), to ask what it lacks")
	flags.StringVar(&f.dataDir, "data-dir", "", "the apiserver's --data-dir, to see that its disk has room")
	flags.StringVar(&f.clusters, "clusters", "", "directory of cluster files, all of which are checked")
	flags.StringVar(&f.name, "name", "", "name of the cluster; a file's own name when not given")
	flags.StringVar(&f.cert, "cert", "", "client certificate for an ENDPOINT")
	flags.StringVar(&f.key, "key", "", "its private key")
	flags.StringVar(&f.ca, "ca", "", "CAs of the ENDPOINT's certificate")
	flags.Uint32Var(&f.ownID, "own-id", 0, "id of the cluster that reads, to see that the other has another one")
	flags.Uint32Var(&f.maxID, "max-connected-clusters", 0, "255 or 511, as the cluster that reads has it (default what the other announces)")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Second, "limit of each request")
	flags.BoolVar(&f.wait, "wait", false, "also check what takes minutes: heartbeats, pings, watches that stay open")
	flags.BoolVar(&f.askWrites, "probe-writes", false, "also ask for writes, in forms that have no effect, to see that they are refused")
}

func (f *troubleshootFlags) validate() error {
	var problems []error
	if f.timeout <= 0 {
		problems = append(problems, fmt.Errorf("--timeout %s: give a positive duration", f.timeout))
	}
	if f.maxID != 0 && f.maxID != 255 && f.maxID != 511 {
		problems = append(problems, fmt.Errorf("--max-connected-clusters %d: it is 255 or 511", f.maxID))
	}
	if u, err := url.Parse(f.apiserver); f.apiserver != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		problems = append(problems, fmt.Errorf("--apiserver %q: give an address such as http://127.0.0.1:9962", f.apiserver))
	}
	return errors.Join(problems...)
}

func (f *troubleshootFlags) options() conformance.Options {
	return conformance.Options{OwnID: f.ownID, MaxClusters: f.maxID, Timeout: f.timeout, Wait: f.wait, ProbeWrites: f.askWrites}
}

// subject is something to check: a target, or a file that yields none because
// of problem.
type subject struct {
	title   string // of what is no cluster's endpoint
	target  conformance.Target
	file    string
	problem error
}

// subjects turns arguments into what is to be checked. The error is one of
// usage; a file that is wrong is a finding.
func (f *troubleshootFlags) subjects(args []string) ([]subject, error) {
	var all []subject
	var problems []error
	for _, arg := range args {
		if !strings.Contains(arg, "://") {
			all = append(all, f.fromFile(arg, false)...)
			continue
		}
		s, err := f.fromEndpoint(arg)
		all, problems = append(all, s), append(problems, err)
	}
	if f.clusters != "" {
		found, err := f.fromDirectory()
		all, problems = append(all, found...), append(problems, err)
	}
	return all, errors.Join(problems...)
}

func (f *troubleshootFlags) fromEndpoint(endpoint string) (subject, error) {
	t := conformance.Target{Cluster: f.name, Endpoint: endpoint, CertFile: f.cert, KeyFile: f.key, CAFile: f.ca}
	missing := []error{needFlag("name", f.name), needFlag("cert", f.cert), needFlag("key", f.key), needFlag("ca", f.ca)}
	if err := errors.Join(missing...); err != nil {
		return subject{}, err
	}
	return subject{target: t}, t.Validate()
}

func (f *troubleshootFlags) fromDirectory() ([]subject, error) {
	entries, err := os.ReadDir(f.clusters)
	if err != nil {
		return nil, fmt.Errorf("--clusters %q: %w", f.clusters, err)
	}
	var all []subject
	for _, e := range entries {
		path := filepath.Join(f.clusters, e.Name())
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
			all = append(all, f.fromFile(path, true)...)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("--clusters %q: no cluster file in it", f.clusters)
	}
	return all, nil
}

// fromFile yields one subject per endpoint. In a directory there may be other
// files, which are left alone.
func (f *troubleshootFlags) fromFile(path string, among bool) []subject {
	name := f.name
	if name == "" || among {
		name = filepath.Base(path)
	}
	file, _, err := clusterfile.Read(path)
	if among && errors.Is(err, clusterfile.ErrNotClusterFile) {
		return nil
	}
	if err != nil {
		return []subject{{target: conformance.Target{Cluster: name}, file: path, problem: err}}
	}
	var all []subject
	for _, endpoint := range file.Endpoints {
		all = append(all, subject{file: path, target: conformance.Target{
			Cluster: name, Endpoint: endpoint, HostAliases: file.Aliases(), CertFile: file.CertFile, KeyFile: file.KeyFile, CAFile: file.TrustedCAFile,
		}})
	}
	return all
}

func (a *app) troubleshoot(ctx context.Context, subjects []subject, f troubleshootFlags) error {
	p := a.findingPrinter()
	defer p.waiting.end()
	o := f.options()
	if f.node.on {
		p.section(subject{title: "this node"}, func() { o.OwnID = cmp.Or(o.OwnID, f.node.check(ctx, p)) })
	}
	if f.apiserver != "" || f.dataDir != "" {
		p.section(subject{title: strings.TrimSpace("apiserver " + f.apiserver), target: conformance.Target{Endpoint: f.apiserver}}, func() { f.checkApiserver(ctx, p) })
	}
	var seen []conformance.Seen
	o.OnSeen = func(s conformance.Seen) { seen = append(seen, s) }
	o.OnResult = func(r conformance.Result) { p.add(resultView(r)) }
	for _, s := range subjects {
		o.OnCheck = func(c conformance.Check) { p.waiting.say("checking " + s.target.Cluster + ": " + c.Title) }
		p.section(s, func() { p.examine(ctx, s, o) })
	}
	if len(seen) > 1 {
		p.section(subject{title: "all clusters"}, func() {
			for _, r := range conformance.Together(seen) {
				p.add(resultView(r))
			}
		})
	}
	if err := p.flush(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("troubleshoot: %w before all checks were made", ctx.Err())
	}
	if p.failed > 0 {
		return errors.New(cli.Count(p.failed, "check", "") + " failed")
	}
	return nil
}

func (p *findingPrinter) examine(ctx context.Context, s subject, o conformance.Options) {
	if s.problem != nil {
		p.add(resultView(fileFinding(s)))
		return
	}
	conformance.Run(ctx, s.target, o)
}

// fileFinding is the finding that a file cannot be used.
func fileFinding(s subject) conformance.Result {
	return conformance.Result{
		Check: conformance.Check{
			ID: "cluster-file", Group: "file", Title: "the cluster file is usable",
			Why: "the agent keeps the file's last good state, or does without the cluster",
		},
		Outcome: conformance.Fail, Cause: "the cluster file cannot be used", Evidence: fmt.Sprintf("%s: %s", s.file, strings.ReplaceAll(s.problem.Error(), "\n", "; ")),
		Remedy: "write an etcd client configuration: endpoints, trusted-ca-file, cert-file, key-file",
	}
}
