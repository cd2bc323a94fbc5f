package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/certs/join"
)

type inviteFlags struct {
	site    join.Site
	to      sink
	opts    join.InviteOptions
	address string
	listen  string
}

func newInvite(a *app) *cobra.Command {
	var f inviteFlags
	cmd := &cobra.Command{
		Use:   "invite --dir DIR --cluster NAME --address HOST:PORT",
		Short: "Make a one-time token with which another cluster joins",
		Long: `Make a token with which one other cluster becomes a peer of this one, and print
it. It holds the address at which it is accepted, the fingerprint of the CA, a
secret and when it expires: hand it over like a password, it works once.

What the cluster may read, how long its certificate is valid and where this one
is reached is decided here and not by what accepts it.

With --listen the command stays and accepts this token until it was used or has
expired. Without, something else must accept: "clustermesh invite serve", which
serves every open invitation of DIR, also after a restart. With --dry-run standard
output is for Secrets, and the token is on standard error.`,
		Example: "  clustermesh invite --dir pki --cluster east --cluster-id 1 --endpoint https://192.0.2.10:2379 --address 192.0.2.10:2380 --listen :2380 --clusters /etc/clustermesh/clusters --peers /etc/clustermesh/peers\n  clustermesh invite --dir pki --cluster east --cluster-id 1 --show-namespace shop --address 192.0.2.10:2380 --for west --life 1d",
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := errors.Join(checkSite(f.site), needFlag("address", f.address), notNegative(f.opts.Life), validIf(f.listen != "", f.check))
			if err := usage(err); err != nil {
				return err
			}
			return a.invite(cmd.Context(), f)
		},
	}
	siteFlags(cmd, &f.site)
	viewFlags(cmd, &f.site.View)
	sinkFlags(cmd, &f.to)
	cmd.Flags().StringVar(&f.address, "address", "", "host:port at which the other cluster reaches --listen (required)")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address to accept at until the token was used, such as :2380")
	cmd.Flags().StringVar(&f.opts.For, "for", "", "the only cluster that may use it; it may have joined before")
	cmd.Flags().Var(asDays(&f.opts.Life), "life", "how long it may be used (default 1h)")
	sub := []*cobra.Command{newInviteServe(a), newInviteList(a), newInviteCancel(a)}
	cmd.AddCommand(sub...)
	cmd.Args = cobra.NoArgs
	return cmd
}

func (f inviteFlags) check() error { return errors.Join(f.to.check(), f.to.checkView(f.site.View)) }

func (a *app) invite(ctx context.Context, f inviteFlags) error {
	var ln net.Listener
	if f.listen != "" {
		var err error
		if ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", f.listen); err != nil {
			return fmt.Errorf("listen: %w; correct --listen", err)
		}
	}
	i, err := f.site.Invite(f.address, f.opts)
	if err != nil {
		if ln != nil {
			ln.Close()
		}
		return err
	}
	// Standard output is the Secret's in a dry run.
	out := a.stdout
	if f.to.dryRun {
		out = a.stderr
	}
	if _, err := fmt.Fprintln(out, i.Token()); err != nil || ln == nil {
		return err
	}
	return a.await(ctx, f, i, ln)
}

// await accepts until this invitation has led to a join, or has expired.
func (a *app) await(ctx context.Context, f inviteFlags, i join.Invitation, ln net.Listener) error {
	ctx, cancel := context.WithDeadline(ctx, i.Expires)
	defer cancel()
	fmt.Fprintf(a.stderr, "accepting at %s until %s\n", ln.Addr(), date(i.Expires))
	joined := ""
	acceptor := a.acceptor(f.site, f.to)
	acceptor.Only = i.Secret.ID()
	acceptor.Joined = func(cluster string) {
		joined = cluster
		cancel()
	}
	if err := acceptor.Serve(ctx, ln); err != nil {
		return err
	}
	if joined != "" {
		fmt.Fprintf(a.stderr, "%s joined\n", joined)
		return nil
	}
	return unfinished(f.site, i, errors.Is(ctx.Err(), context.DeadlineExceeded))
}

// unfinished says how far an invitation has come that led to no join. Who has
// used it holds a certificate, so that is not as if nobody had come.
func unfinished(site join.Site, i join.Invitation, expired bool) error {
	list, err := site.Invitations()
	if err != nil {
		return err
	}
	for _, known := range list {
		if known.ID == i.Secret.ID() && known.Used != nil {
			return fmt.Errorf("the invitation was used by %[1]s, not confirmed; let it confirm with: clustermesh invite serve, or take it back with: clustermesh disconnect %[1]s --dir %[2]s", known.Used.By, site.Dir)
		}
	}
	if expired {
		return errors.New("the invitation expired before it was used; make a new one")
	}
	return errors.New("stopped before the invitation was used; accept it later with: clustermesh invite serve")
}

func (a *app) acceptor(site join.Site, to sink) *join.Acceptor {
	site.Check = to.checkPeer
	return &join.Acceptor{
		Site:    site,
		Log:     slog.New(slog.NewTextHandler(a.stderr, nil)),
		Install: to.install(a),
	}
}

func newInviteServe(a *app) *cobra.Command {
	var f inviteFlags
	cmd := &cobra.Command{
		Use:     "serve --dir DIR --cluster NAME --listen ADDRESS --clusters DIR",
		Short:   "Accept clusters with invitations until interrupted",
		Long:    "Accept every cluster that shows an open invitation of DIR, until interrupted, each\nas its invitation says; --endpoint and --validity are for those that do not say it.",
		Example: "  clustermesh invite serve --dir pki --cluster east --cluster-id 1 --endpoint https://192.0.2.10:2379 --listen :2380 --clusters /etc/clustermesh/clusters --peers /etc/clustermesh/peers",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := usage(checkSite(f.site), needFlag("listen", f.listen), f.to.check()); err != nil {
				return err
			}
			ln, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", f.listen)
			if err != nil {
				return fmt.Errorf("listen: %w; correct --listen", err)
			}
			fmt.Fprintf(a.stderr, "accepting at %s\n", ln.Addr())
			return a.acceptor(f.site, f.to).Serve(cmd.Context(), ln)
		},
	}
	siteFlags(cmd, &f.site)
	sinkFlags(cmd, &f.to)
	cmd.Flags().StringVar(&f.listen, "listen", "", "address to accept at, such as :2380 (required)")
	return cmd
}

func newInviteList(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "list --dir DIR",
		Short:   "List invitations and who used them",
		Example: "  clustermesh invite list --dir pki",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := usage(needFlag("dir", dir)); err != nil {
				return err
			}
			list, err := join.Site{Dir: dir}.Invitations()
			if err != nil {
				return err
			}
			t := table{header: []string{"ID", "FOR", "EXPIRES", "STATE"}}
			for _, i := range list {
				t.add(i.ID, i.For, date(i.Expires), inviteState(i, time.Now()))
			}
			return a.print(list, t)
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}

func inviteState(i join.Invited, now time.Time) string {
	switch {
	case i.Used != nil:
		return "used by " + i.Used.By + " on " + date(i.Used.At)
	case now.After(i.Expires):
		return "expired"
	}
	return "open"
}

func newInviteCancel(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "cancel ID --dir DIR",
		Short:   "Take back an invitation that was not used",
		Example: "  clustermesh invite cancel 1a2b3c4d5e6f7081 --dir pki",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := usage(needFlag("dir", dir)); err != nil {
				return err
			}
			return join.Site{Dir: dir}.Cancel(args[0])
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}
