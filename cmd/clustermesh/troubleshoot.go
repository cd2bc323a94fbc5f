package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/conformance"
)

// troubleshootFlags are the flags of the command.
type troubleshootFlags struct {
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
		Use:   "troubleshoot FILE|ENDPOINT...",
		Short: "Find out why a cluster is not ready: check all that its readers rely on",
		Long: `Check, point by point, what Cilium's and this product's agents rely on in another
cluster: the network, certificates, access, paging and watches, the heartbeat,
the cluster's announcement, its canaries and every entry it publishes.

A FILE is a cluster file as in the agent's --clusters directory, named like its
cluster. An ENDPOINT is https://host:port and needs --name, --cert, --key and
--ca. Nothing is written. A check that builds on one that did not pass is
skipped, so that one fault is one failure. With -o json each finding also says
what a reader does because of it.

Exit codes: 0 nothing failed, 1 something failed, 2 used wrongly.`,
		Example: "  clustermesh troubleshoot --clusters /etc/clustermesh/clusters\n" +
			"  clustermesh troubleshoot /etc/clustermesh/clusters/west --own-id 1 --wait\n" +
			"  clustermesh troubleshoot https://west.mesh.cilium.io:2379 --name west --cert remote.crt --key remote.key --ca ca.crt",
		RunE: func(c *cobra.Command, args []string) error {
			subjects, err := f.subjects(args)
			if err := usage(err, f.validate()); err != nil {
				return err
			}
			return a.troubleshoot(c.Context(), subjects, f.options())
		},
	}
	f.add(c)
	return c
}

func (f *troubleshootFlags) add(c *cobra.Command) {
	flags := c.Flags()
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
	return errors.Join(problems...)
}

func (f *troubleshootFlags) options() conformance.Options {
	return conformance.Options{OwnID: f.ownID, MaxClusters: f.maxID, Timeout: f.timeout, Wait: f.wait, ProbeWrites: f.askWrites}
}

// subject is something to check: a target, or a file that yields none because
// of problem.
type subject struct {
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
	if len(all) == 0 && errors.Join(problems...) == nil {
		problems = append(problems, errors.New("there is nothing to check; give a cluster file, an endpoint or --clusters"))
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

// errFindings ends the command when something failed that has been told.
var errFindings = errors.New("checks failed")

func (a *app) troubleshoot(ctx context.Context, subjects []subject, o conformance.Options) error {
	p := &findingPrinter{app: a}
	for _, s := range subjects {
		p.begin(s)
		if s.problem != nil {
			p.add(fileFinding(s))
		} else {
			o.OnResult = func(r conformance.Result) { p.add(r) }
			conformance.Run(ctx, s.target, o)
		}
		p.end()
	}
	if err := p.flush(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("troubleshoot: %w before all checks were made", ctx.Err())
	}
	if p.failed > 0 {
		return fmt.Errorf("%d %w", p.failed, errFindings)
	}
	return nil
}

// fileFinding is the finding that a file cannot be used.
func fileFinding(s subject) conformance.Result {
	return conformance.Result{
		Check: conformance.Check{
			ID: "cluster-file", Group: "file", Title: "the cluster file is usable",
			Why: "the agent keeps the file's last good state, or does without the cluster",
		},
		Outcome: conformance.Fail, Evidence: fmt.Sprintf("%s: %s", s.file, strings.ReplaceAll(s.problem.Error(), "\n", "; ")),
		Remedy: "write an etcd client configuration: endpoints, trusted-ca-file, cert-file, key-file",
	}
}
