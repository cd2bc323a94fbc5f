package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/certs/join"
)

// newJoinCommands are the commands that make two clusters peers and part them.
func newJoinCommands(a *app) []*cobra.Command {
	return []*cobra.Command{newInvite(a), newJoin(a), newRequest(a), newApprove(a), newAccept(a), newDisconnect(a)}
}

// siteFlags are the flags that describe the own side.
func siteFlags(cmd *cobra.Command, s *join.Site) {
	dirFlag(cmd, &s.Dir)
	cmd.Flags().StringVar(&s.Cluster, "cluster", "", "name of the own cluster (required)")
	cmd.Flags().Uint32Var(&s.ID, "cluster-id", 0, "id of the own cluster, as --cluster-id of its apiserver (required)")
	cmd.Flags().Uint32Var(&s.MaxClusters, "max-connected-clusters", 255, "255 or 511, the same in every cluster of the mesh")
	cmd.Flags().StringArrayVar(&s.Endpoints, "endpoint", nil, "https://host:port at which others reach the own clustermesh-apiserver; may be repeated. Without it others do not connect here")
	cmd.Flags().Var(asDays(&s.Validity), "validity", "how long the other cluster's certificate is valid, such as 90d (default one year)")
}

// replaceFlags say who the other cluster is, and that it may have been a peer.
func replaceFlags(cmd *cobra.Command, s *join.Site) {
	cmd.Flags().StringVar(&s.For, "for", "", "the only cluster that the other side may be (default any that is not a peer yet)")
	cmd.Flags().BoolVar(&s.Replace, "replace", false, "allow the cluster of --for, whose name has a valid certificate already, to join again")
}

// checkReplace: without a name, whoever answers could take any peer's place.
func checkReplace(s join.Site) error {
	switch {
	case s.For != "":
		return join.CheckName(s.For)
	case s.Replace:
		return errors.New("--replace: say with --for NAME which cluster may take its own former place")
	}
	return nil
}

// viewFlags say what the other cluster may read here.
func viewFlags(cmd *cobra.Command, v *join.View) {
	f := cmd.Flags()
	f.StringSliceVar(&v.Namespaces, "show-namespace", nil, "let the other cluster read the services of this namespace; may be repeated (default what it could read before, else everything that is exported)")
	f.StringSliceVar(&v.Services, "show-service", nil, "let it read this service, namespace/name; may be repeated")
	f.StringSliceVar(&v.Kinds, "show-kind", nil, "let it read all nodes, identities or addresses; may be repeated")
}

func checkSite(s join.Site) error {
	var id error
	if s.ID == 0 {
		id = errors.New("--cluster-id is not set")
	}
	return errors.Join(needFlag("dir", s.Dir), needFlag("cluster", s.Cluster), id, validIf(s.Dir != "" && s.Cluster != "" && s.ID != 0, s.Validate))
}

func validIf(sure bool, validate func() error) error {
	if !sure {
		return nil
	}
	return validate()
}

func newJoin(a *app) *cobra.Command {
	var site join.Site
	var to sink
	var confirmation string
	cmd := &cobra.Command{
		Use:   "join TOKEN --dir DIR --cluster NAME --clusters DIR",
		Short: "Become a peer of the cluster that made the token",
		Long: `Become a peer of the cluster whose operator made the TOKEN with "clustermesh
invite". TOKEN may be - to read it from standard input, where no process list
shows it.

The key is made here and stays here. What goes to the other side, over TLS pinned
to the CA in the token, is the own name, id, CA and endpoints and a request for a
certificate for remote-<cluster>. Both sides then have what running agents
(--clusters) and apiservers (--peers) need to read from each other.

A token works once. A command that was cut off may be given again, with the same
token, and goes on where it was.`,
		Example: "  clustermesh join - --dir pki --cluster west --cluster-id 2 --endpoint https://192.0.2.20:2379 --clusters /etc/clustermesh/clusters --peers /etc/clustermesh/peers < token\n  clustermesh join - --dir pki --cluster west --cluster-id 2 --endpoint https://192.0.2.20:2379 --dry-run -o yaml < token | kubectl apply -f -",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := usage(checkSite(site), checkReplace(site), to.check(), to.checkView(site.View)); err != nil {
				return err
			}
			site.Check = to.checkPeer
			token, err := a.textOf(args[0])
			if err != nil {
				return err
			}
			waiting, other := a.progress("joining"), ""
			rest, err := join.Join(cmd.Context(), token, site, func(p join.Peer) error {
				other = p.Cluster
				return to.install(a)(p)
			})
			waiting.end()
			if rest != nil {
				return errors.Join(err, writeConfirmation(confirmation, *rest))
			}
			if err == nil {
				fmt.Fprintln(a.stderr, strings.TrimSpace("joined "+other)) // not known if only the end was left to do
			}
			return err
		},
	}
	siteFlags(cmd, &site)
	replaceFlags(cmd, &site)
	viewFlags(cmd, &site.View)
	sinkFlags(cmd, &to)
	cmd.Flags().StringVar(&confirmation, "confirmation", "confirmation.json", "where to put the confirmation if it could not be delivered")
	return cmd
}

func writeConfirmation(path string, c join.Confirmation) error {
	if err := c.WriteFile(path); err != nil {
		return err
	}
	return fmt.Errorf("this side has joined; for the other, give the same command again, or hand over %s and have it run: clustermesh accept %s", path, path)
}

// textOf is the argument itself, or standard input for "-".
func (a *app) textOf(arg string) (string, error) {
	if arg != "-" {
		return arg, nil
	}
	text, err := io.ReadAll(io.LimitReader(a.stdin, maxRead))
	return string(text), err
}

const maxRead = 1 << 20

// fileOf is the content of a file, or standard input for "-".
func (a *app) fileOf(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(a.stdin, maxRead))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRead))
}

func newRequest(a *app) *cobra.Command {
	var site join.Site
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "request --dir DIR --cluster NAME",
		Short: "Ask to become a peer, as a file",
		Long: `Make a key, which stays in DIR, and print a request for the operator of another
cluster. The request holds nothing secret. He answers with "clustermesh approve",
and his answer goes into "clustermesh accept" here.

Read the fingerprint to each other over another channel: it tells whether the
file was changed on the way.`,
		Example: "  clustermesh request --dir pki --cluster west --cluster-id 2 --endpoint https://192.0.2.20:2379 > west.request\n  clustermesh approve west.request --dir pki --cluster east --cluster-id 1 --endpoint https://192.0.2.10:2379 > west.approval   # at the other side\n  clustermesh accept west.approval --dir pki --clusters clusters --peers peers > west.confirmation\n  clustermesh accept west.confirmation --dir pki --clusters clusters --peers peers   # at the other side",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := usage(checkSite(site), notNegative(life)); err != nil {
				return err
			}
			r, err := site.Request(life)
			if err != nil {
				return err
			}
			return a.printMessage(r)
		},
	}
	siteFlags(cmd, &site)
	cmd.Flags().Var(asDays(&life), "life", "how long it may be approved (default 7d)")
	return cmd
}

func (a *app) printMessage(m any) error {
	data := join.Encode(m)
	fmt.Fprintf(a.stderr, "fingerprint: %s\n", join.FingerprintOf(data))
	_, err := a.stdout.Write(data)
	return err
}

func newApprove(a *app) *cobra.Command {
	var site join.Site
	var to sink
	var fingerprint string
	cmd := &cobra.Command{
		Use:   "approve FILE --dir DIR --cluster NAME",
		Short: "Answer the request of another cluster, as a file",
		Long: `Sign the certificate that a request asks for, and print the approval, which holds
nothing secret. A request is approved once, and only for remote-<its cluster>; until
the exchange is over the same request gets the same approval again.

The other cluster may read here once its confirmation is accepted. If it has no
endpoint there is none, and its file is written to --peers now.`,
		Example: "  clustermesh approve west.request --dir pki --cluster east --cluster-id 1 --endpoint https://192.0.2.10:2379 --fingerprint 1a2b-... > west.approval",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := usage(checkSite(site), checkReplace(site)); err != nil {
				return err
			}
			site.Check = to.checkPeer
			data, err := a.received(args[0], fingerprint)
			if err != nil {
				return err
			}
			r, err := join.DecodeRequest(data)
			if err != nil {
				return err
			}
			if len(r.From.Endpoints) == 0 { // else accept writes its file
				if err := usage(to.checkView(site.View)); err != nil {
					return err
				}
			}
			approval, err := site.Approve(r, to.install(a))
			if err != nil {
				return err
			}
			return a.printMessage(approval)
		},
	}
	siteFlags(cmd, &site)
	replaceFlags(cmd, &site)
	viewFlags(cmd, &site.View)
	cmd.Flags().StringVar(&to.home.Peers, "peers", "", "directory of peers' files, for a cluster without endpoint")
	fingerprintFlag(cmd, &fingerprint)
	return cmd
}

func fingerprintFlag(cmd *cobra.Command, value *string) {
	cmd.Flags().StringVar(value, "fingerprint", "", "refuse the file unless it has the fingerprint that its sender read out")
}

// received reads a file of the other side and checks or shows its fingerprint.
func (a *app) received(path, want string) ([]byte, error) {
	data, err := a.fileOf(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	got := join.FingerprintOf(data)
	if want != "" && !strings.EqualFold(strings.TrimSpace(want), got) {
		return nil, fmt.Errorf("%s has fingerprint %s and not %s: it was changed on the way, or is another file", path, got, want)
	}
	if want == "" {
		fmt.Fprintf(a.stderr, "%s has fingerprint %s; ask the sender for his\n", path, got)
	}
	return data, nil
}

func newAccept(a *app) *cobra.Command {
	var site join.Site
	var to sink
	var fingerprint, confirmation string
	cmd := &cobra.Command{
		Use:   "accept FILE --dir DIR --clusters DIR",
		Short: "Take the other cluster's approval or confirmation, as a file",
		Long: `Take what the other side answered and write the files with which agents connect
to it (--clusters) and the apiserver knows it (--peers). For an approval, a
confirmation is printed for the other side to accept; with --dry-run, where
standard output is for Secrets, it goes to --confirmation.`,
		Example: "  clustermesh accept west.approval --dir pki --clusters /etc/clustermesh/clusters --peers /etc/clustermesh/peers > west.confirmation\n  clustermesh accept west.confirmation --dir pki --clusters /etc/clustermesh/clusters --peers /etc/clustermesh/peers\n  clustermesh accept west.approval --dir pki --dry-run -o yaml --confirmation west.confirmation | kubectl apply -f -",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := usage(needFlag("dir", site.Dir), site.View.Validate(), checkReplace(site), to.check(), to.checkView(site.View)); err != nil {
				return err
			}
			data, err := a.received(args[0], fingerprint)
			if err != nil {
				return err
			}
			site.Check = to.checkPeer
			return a.accept(site, data, to, confirmation)
		},
	}
	dirFlag(cmd, &site.Dir)
	cmd.Flags().Var(asDays(&site.Validity), "validity", "how long the other cluster's certificate is valid, such as 90d (default one year)")
	replaceFlags(cmd, &site)
	viewFlags(cmd, &site.View)
	sinkFlags(cmd, &to)
	fingerprintFlag(cmd, &fingerprint)
	cmd.Flags().StringVar(&confirmation, "confirmation", "", "file for the confirmation instead of standard output")
	return cmd
}

func (a *app) accept(site join.Site, data []byte, to sink, out string) error {
	approval, confirmation, err := join.DecodeAnswer(data)
	if err != nil {
		return err
	}
	if confirmation != nil {
		return site.AcceptConfirmation(*confirmation, to.install(a))
	}
	if to.dryRun && out == "" && approval.CSR != "" {
		return errors.New("the other side waits for a confirmation: say with --confirmation where to put it, for standard output is the Secret")
	}
	answer, err := site.AcceptApproval(*approval, to.install(a))
	if err != nil || answer == nil {
		return err
	}
	if out == "" {
		return a.printMessage(*answer)
	}
	text := join.Encode(*answer)
	fmt.Fprintf(a.stderr, "fingerprint: %s\n", join.FingerprintOf(text))
	return answer.WriteFile(out)
}

func newDisconnect(a *app) *cobra.Command {
	var dir string
	var to sink
	cmd := &cobra.Command{
		Use:   "disconnect CLUSTER [--dir DIR] [--clusters DIR] [--peers DIR]",
		Short: "End the relation with a cluster, also if it is gone",
		Long: `End the relation with a cluster from this side alone; it may be repeated. Its
file is removed from --peers, which ends its connections to the own apiserver, its
files from --clusters, which drains it from the agents, and the certificates that
the CA in --dir issued to it are revoked.

With --dry-run the Secret with the files of the peers that remain is printed.`,
		Example: "  clustermesh disconnect west --dir pki --clusters /etc/clustermesh/clusters --peers /etc/clustermesh/peers\n  clustermesh disconnect west --dir pki --dry-run -o yaml | kubectl apply -f -",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := usage(checkDisconnect(dir, to)); err != nil {
				return err
			}
			return a.disconnect(dir, to, args[0])
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the CA, to revoke the cluster's certificates")
	homeFlags(cmd, &to.home)
	to.dryRunFlags(cmd)
	return cmd
}

func checkDisconnect(dir string, to sink) error {
	switch {
	case to.dryRun && to.format != formatYAML:
		return fmt.Errorf("--output %q: use yaml", to.format)
	case !to.dryRun && to.peersFrom != "":
		return errPeersFrom
	case to.dryRun:
		_, err := to.options()
		return errors.Join(needFlag("dir", dir), err)
	case dir == "" && to.home.Clusters == "" && to.home.Peers == "":
		return errors.New("give --dir, --clusters and --peers, or those of them that there are")
	}
	return nil
}

// printPeers prints the Secret of the peers that remain without a cluster.
func (a *app) printPeers(dir string, to sink, cluster string) error {
	o, err := to.options()
	if err != nil {
		return err
	}
	site := join.Site{Dir: dir}
	manifest, err := site.PeersSecret(o)
	if err != nil {
		return err
	}
	peers, err := site.Peers()
	if err != nil {
		return err
	}
	to.printed(a, o, peers, cluster)
	if o.Check(cluster) == nil { // else that Secret is another one
		fmt.Fprintf(a.stderr, "apply this, and then, in the same namespace: kubectl delete secret clustermesh-%s\n", cluster)
	}
	_, err = a.stdout.Write(manifest)
	return err
}

func (a *app) disconnect(dir string, to sink, cluster string) error {
	found, err := join.Leave(dir, to.home, cluster)
	if err != nil {
		return err
	}
	if to.dryRun {
		if err := a.printPeers(dir, to, cluster); err != nil {
			return err
		}
	}
	if found {
		_, err = fmt.Fprintf(a.stderr, "disconnected %s\n", cluster)
	} else {
		_, err = fmt.Fprintf(a.stderr, "nothing is left of %s\n", cluster)
	}
	return err
}
