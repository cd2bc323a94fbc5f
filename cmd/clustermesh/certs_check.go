package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
)

type checkFlags struct {
	dirs, clusters, peers []string
	simulate              time.Duration
}

func newCertsCheck(a *app) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check [--dir DIR]... [--clusters DIR]... [--peers DIR]...",
		Short: "Find certificates that do not work, now or soon",
		Long: `Check every certificate of CA directories (--dir) and of directories of cluster
files (--clusters): validity, key, names, usage, chain and revocation. Where both
ends of a link are given, the server certificate of a cluster is verified with
the CA that the cluster file names, and the client certificate with the CA of
the cluster. Of peers' files (--peers, with the own CA's --dir) it is said which
hold a CA that no rotation reaches. Only files are read.

The answer is sorted by when a link breaks. The exit code is 1 if one is broken,
or with --simulate if one will be within that time.`,
		Example: "  clustermesh certs check --dir pki\n  clustermesh certs check --dir pki --clusters /etc/clustermesh/clusters --simulate 90d",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var missing error
			switch {
			case len(f.dirs) == 0 && len(f.peers) > 0:
				missing = errors.New("--peers needs --dir: give the directory of the own CA too")
			case len(f.dirs)+len(f.clusters) == 0:
				missing = errors.New("give --dir, --clusters or both")
			}
			if err := usage(missing, notNegative(f.simulate)); err != nil {
				return err
			}
			return a.check(f)
		},
	}
	cmd.Flags().StringArrayVar(&f.dirs, "dir", nil, "directory of a CA; may be repeated")
	cmd.Flags().StringArrayVar(&f.clusters, "clusters", nil, "directory of cluster files; may be repeated")
	cmd.Flags().StringArrayVar(&f.peers, "peers", nil, "directory of peers' files of an apiserver; may be repeated")
	cmd.Flags().Var(asDays(&f.simulate), "simulate", "fail also if a link breaks within this time, such as 90d")
	return cmd
}

func (a *app) check(f checkFlags) error {
	var links []certs.Link
	var errs []error
	for _, dir := range f.dirs {
		found, err := certs.DirLinks(dir)
		links, errs = append(links, found...), append(errs, err)
	}
	for _, dir := range f.clusters {
		found, err := clusterLinks(dir, f.dirs)
		links, errs = append(links, found...), append(errs, err)
	}
	now := time.Now()
	found := certs.Check(links, now)
	for _, dir := range f.peers {
		more, err := peerFindings(dir, f.dirs, now)
		found, errs = append(found, more...), append(errs, err)
	}
	slices.SortStableFunc(found, func(a, b certs.Finding) int { return a.At.Compare(b.At) })
	if err := a.printFindings(found, now, f.simulate); err != nil {
		return err
	}
	return errors.Join(append(errs, verdict(found, now.Add(f.simulate), f.simulate))...)
}

// verdict is the error that makes the exit code.
func verdict(found []certs.Finding, until time.Time, within time.Duration) error {
	broken, soon := 0, 0
	for _, f := range found {
		switch {
		case f.Harmless:
		case f.Broken:
			broken++
		case !f.At.After(until):
			soon++
		}
	}
	switch {
	case broken > 0 && soon > 0:
		return fmt.Errorf("%s now and %d more by %s", cli.Count(broken, "problem", ""), soon, date(until))
	case broken > 0:
		return errors.New(cli.Count(broken, "problem", ""))
	case soon > 0 && within > 0:
		return fmt.Errorf("%s by %s", cli.Count(soon, "link or CA ends", "links or CAs end"), date(until))
	}
	return nil
}

func (a *app) printFindings(found []certs.Finding, now time.Time, within time.Duration) error {
	t := table{header: []string{"WHEN", "STATE", "LINK", "FILE", "WHAT", "REMEDY"}}
	for _, f := range found {
		state, when := "ok", date(f.At)
		switch {
		case f.Broken:
			state, when = "broken", "now"
		case f.Harmless:
			state = "harmless"
		case within > 0 && !f.At.After(now.Add(within)):
			state = "breaks"
		}
		t.add(when, state, f.Link, f.File, strings.ReplaceAll(f.Problem, "\n", "; "), f.Remedy)
	}
	return a.print(found, t)
}

// clusterLinks lists the links of a directory of cluster files. dirs are CA
// directories, in which the other ends may be.
func clusterLinks(dir string, dirs []string) ([]certs.Link, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read clusters directory: %w; correct --clusters", err)
	}
	var links []certs.Link
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		if strings.HasPrefix(e.Name(), ".") || err == nil && !info.Mode().IsRegular() {
			continue
		}
		file, _, err := clusterfile.Read(path)
		if errors.Is(err, clusterfile.ErrNotClusterFile) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			continue
		}
		links = append(links, linksTo(e.Name(), file, dirs)...)
	}
	return links, errors.Join(errs...)
}

// linksTo are the two directions in which certificates are verified on a
// connection to one cluster.
func linksTo(cluster string, file clusterfile.File, dirs []string) []certs.Link {
	client := certs.Link{Name: "client to " + cluster, Kind: certs.Remote, Cert: file.CertFile, Key: file.KeyFile}
	server := certs.Link{Name: "server of " + cluster, Kind: certs.Server, CA: file.TrustedCAFile}
	for _, dir := range dirs {
		cert := filepath.Join(dir, "server-"+cluster+".crt")
		if _, err := os.Stat(cert); err != nil {
			continue
		}
		client.CA = filepath.Join(dir, "ca.crt")
		if crl := filepath.Join(dir, "ca.crl"); fileExists(crl) {
			client.CRL = crl
		}
		server.Cert, server.Hosts = cert, hostsOf(file)
	}
	return []certs.Link{client, server}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func hostsOf(file clusterfile.File) []string {
	var hosts []string
	for _, e := range file.Endpoints {
		if u, err := url.Parse(e); err == nil {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}
