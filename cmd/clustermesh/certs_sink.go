package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/certs/join"
)

// sink is where a new peer goes: the directories that agents and apiserver
// follow, or manifests on standard output.
type sink struct {
	home   join.Home
	dryRun bool
	format string
	secret join.SecretOptions
	// peersFrom is where the peers' files are that the Secret has now.
	peersFrom string
}

func sinkFlags(cmd *cobra.Command, s *sink) {
	f := cmd.Flags()
	homeFlags(cmd, &s.home)
	s.dryRunFlags(cmd)
	f.StringVar(&s.secret.Name, "secret-name", "", "name of the Secret with the cluster file (default clustermesh-<other cluster>)")
	f.StringVar(&s.secret.Mount, "mount", "", "directory in which pods see that Secret, for readers that need absolute paths")
}

func (s *sink) dryRunFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&s.dryRun, "dry-run", false, "write no files for agents and apiserver; print Kubernetes Secrets with them for kubectl apply. They may hold a private key")
	f.StringVarP(&s.format, "output", "o", formatYAML, "output format of --dry-run: yaml")
	f.StringVar(&s.secret.PeersName, "peers-secret-name", "", "name of the Secret with all peers' files (default clustermesh-peers)")
	f.StringVar(&s.peersFrom, "peers-from", "", "that Secret as it is now, as kubectl get secret -o yaml prints it, or a directory with its files: what was restricted there stays (with --dry-run)")
	f.StringVar(&s.secret.Namespace, "namespace", "", "namespace of the Secrets")
}

func homeFlags(cmd *cobra.Command, h *join.Home) {
	cmd.Flags().StringVar(&h.Clusters, "clusters", "", "directory of cluster files, which the agents follow (their --clusters)")
	cmd.Flags().StringVar(&h.Peers, "peers", "", "directory of peers' files, which the own clustermesh-apiserver follows (its --peers); not needed if it has none")
}

func (s sink) check() error {
	switch {
	case s.dryRun && s.format != formatYAML:
		return fmt.Errorf("--output %q: use yaml", s.format)
	case s.dryRun && s.home.Peers != "":
		return errors.New("--peers: --dry-run prints a Secret with that file instead; give one of them")
	case !s.dryRun && s.peersFrom != "":
		return errPeersFrom
	case s.dryRun == (s.home.Clusters != ""):
		return errors.New("give either --clusters or --dry-run -o yaml; and --peers if the apiserver has it")
	}
	_, err := s.options()
	return err
}

// checkView refuses to show something where it would reach nobody's file.
func (s sink) checkView(v join.View) error {
	if s.dryRun || s.home.Peers != "" || v.Empty() {
		return nil
	}
	return errors.New("--show-namespace, --show-service, --show-kind: they go into the peer's file, and none is written; give --peers DIR as well, the directory that the own apiserver follows")
}

var errPeersFrom = errors.New("--peers-from: it is for the Secret that --dry-run prints; without that, the files in --peers are kept as they are")

// options describe the Secrets, with what that of the peers has now.
func (s sink) options() (join.SecretOptions, error) {
	o := s.secret
	if s.peersFrom == "" {
		return o, nil
	}
	var err error
	if o.Present, err = join.ReadPeers(s.peersFrom); err != nil {
		err = fmt.Errorf("--peers-from: %w", err)
	}
	return o, err
}

// printed tells what the Secret of the peers, as it was printed, lacks of what the
// one in the cluster may hold. gone is a cluster of which nothing is to be kept.
func (s sink) printed(a *app, o join.SecretOptions, peers []join.Known, gone string) {
	if s.peersFrom == "" {
		fmt.Fprintln(a.stderr, "warning: what was edited in the Secret of the peers is not in this output; have it kept with --peers-from FILE, written by: kubectl get secret clustermesh-peers -o yaml")
	}
	for _, name := range o.Strays(peers) {
		if name != gone+".yaml" {
			fmt.Fprintf(a.stderr, "warning: --peers-from has %q, which is of no peer of the CA directory and not in this output\n", name)
		}
	}
}

// checkPeer refuses what install would, before anything is given away.
func (s sink) checkPeer(cluster string, replace bool) error {
	if !s.dryRun {
		return s.home.Check(cluster, replace)
	}
	o, err := s.options()
	return errors.Join(o.Check(cluster), err)
}

func (s sink) install(a *app) func(join.Peer) error {
	return func(p join.Peer) error {
		if len(p.Endpoints) == 0 {
			fmt.Fprintf(a.stderr, "%s has no endpoint: it connects here and is not connected to\n", p.Cluster)
		}
		if s.dryRun {
			return s.print(a, p)
		}
		return s.home.Install(p)
	}
}

func (s sink) print(a *app, p join.Peer) error {
	o, err := s.options()
	if err != nil {
		return err
	}
	manifest, err := p.Secrets(o)
	if err != nil {
		return err
	}
	if p.Reads {
		s.printed(a, o, append([]join.Known{{Cluster: p.Cluster}}, p.Others...), "")
	}
	_, err = a.stdout.Write(manifest)
	return err
}
