package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/certs"
)

func newCertsRenew(a *app) *cobra.Command {
	var dir string
	var opts certs.RenewOptions
	cmd := &cobra.Command{
		Use:   "renew --dir DIR [NAME...]",
		Short: "Issue certificates anew that are past half of their life",
		Long: `Issue certificates in DIR anew: same names, a new key, as long a life as before.
Without NAME (such as server-east) all of the directory are looked at.

A certificate is due when half of its life is over, when a CA other than the
issuing one has signed it, or when its key does not belong to it. Processes
that use the files notice by themselves.`,
		Example: "  clustermesh certs renew --dir pki\n  clustermesh certs renew --dir pki --force server-east",
		RunE: func(_ *cobra.Command, names []string) error {
			if err := usage(needFlag("dir", dir)); err != nil {
				return err
			}
			opts.Names = names
			list, err := certs.Renew(dir, opts)
			return errors.Join(a.printRenewals(list), err)
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&opts.Force, "force", false, "renew what is not due yet, too")
	return cmd
}

func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "directory of the CA (required)")
}

func (a *app) printRenewals(list []certs.Renewal) error {
	if len(list) == 0 {
		return nil
	}
	t := table{header: []string{"CERTIFICATE", "RENEWED", "EXPIRES", "NEXT", "REASON"}}
	for _, r := range list {
		t.add(r.Cert, yes(r.Renewed), date(r.NotAfter), date(r.Due), r.Reason)
	}
	return a.print(list, t)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func newCertsRevoke(a *app) *cobra.Command {
	var dir string
	var req certs.RevokeRequest
	cmd := &cobra.Command{
		Use:   "revoke --dir DIR [NAME|FILE...]",
		Short: "Take certificates back before they expire",
		Long: `Add certificates to the revocation list DIR/ca.crl. A NAME such as remote-west
stands for every valid certificate issued under it, a FILE for the one in it.

The list is signed by the CA and replaced in one step. Whoever was given the
file refuses these certificates from the next connection on. Without NAME, FILE
and --serial the list is written as it stands, empty if it is new.`,
		Example: "  clustermesh certs revoke --dir pki remote-west\n  clustermesh certs revoke --dir pki old/remote-west.crt\n  clustermesh certs revoke --dir pki --serial 5f0c2b",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := usage(needFlag("dir", dir)); err != nil {
				return err
			}
			splitTargets(&req, args)
			list, err := certs.Revoke(dir, req)
			if err != nil {
				return err
			}
			return a.printIssued(list)
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().StringSliceVar(&req.Serials, "serial", nil, "serial number in hex, as inspect -o json shows it; may be repeated")
	return cmd
}

// splitTargets takes what exists as a file or looks like one for a file.
func splitTargets(req *certs.RevokeRequest, args []string) {
	for _, arg := range args {
		if _, err := os.Stat(arg); err == nil || strings.HasSuffix(arg, ".crt") || strings.HasSuffix(arg, ".pem") {
			req.Files = append(req.Files, arg)
		} else {
			req.Names = append(req.Names, arg)
		}
	}
}

func (a *app) printIssued(list []certs.Issued) error {
	t := table{header: []string{"NAME", "SERIAL", "ISSUED", "EXPIRES", "REVOKED"}}
	for _, i := range list {
		t.add(i.Name, i.Serial, date(i.Issued), date(i.NotAfter), yes(i.Revoked))
	}
	return a.print(list, t)
}

func newCertsRotate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the CA, step by step, without an outage",
		Long: `Replace the CA of a directory without an outage, in three steps:

  prepare   makes the next CA and adds it to ca.crt. Hand ca.crt to every peer.
  activate  lets the next CA issue; ca.crt keeps both. Renew every certificate.
  retire    takes the old CA out of ca.crt when nothing it issued is valid.

Each step may be repeated when it was interrupted. "certs inspect --dir" shows
how far a rotation has come.`,
		Example: "  clustermesh certs rotate prepare --dir pki\n  clustermesh certs rotate activate --dir pki\n  clustermesh certs renew --dir pki\n  clustermesh certs rotate retire --dir pki",
	}
	cmd.AddCommand(newRotatePrepare(a), newRotateActivate(a), newRotateRetire(a))
	return asGroup(cmd)
}

type rotateStep func(dir string, opts certs.RotateOptions) (certs.Rotation, error)

// newRotateStep is a command of one step; flags adds what the step has of its own.
func newRotateStep(a *app, cmd *cobra.Command, step rotateStep, opts *certs.RotateOptions) *cobra.Command {
	var dir string
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := usage(needFlag("dir", dir), notNegative(opts.CA.Validity), notNegative(opts.Overlap)); err != nil {
			return err
		}
		r, err := step(dir, *opts)
		if err != nil {
			return err
		}
		return a.printRotation(r, dir)
	}
	dirFlag(cmd, &dir)
	return cmd
}

func newRotatePrepare(a *app) *cobra.Command {
	var opts certs.RotateOptions
	cmd := newRotateStep(a, &cobra.Command{
		Use:     "prepare --dir DIR",
		Short:   "Make the next CA and add it to ca.crt",
		Example: "  clustermesh certs rotate prepare --dir pki --validity 3650d",
	}, certs.PrepareCA, &opts)
	cmd.Flags().StringVar(&opts.CA.Name, "name", "", "common name of the new CA (default that of the old one)")
	cmd.Flags().Var(asDays(&opts.CA.Validity), "validity", "how long the new CA is valid (default ten years)")
	return cmd
}

func newRotateActivate(a *app) *cobra.Command {
	var opts certs.RotateOptions
	cmd := newRotateStep(a, &cobra.Command{
		Use:     "activate --dir DIR",
		Short:   "Let the next CA issue; ca.crt keeps both",
		Long:    "Let the prepared CA issue; ca.crt keeps both. Every peer must have the new ca.crt\nbefore: refused until --overlap has passed since prepare.",
		Example: "  clustermesh certs rotate activate --dir pki\n  clustermesh certs rotate activate --dir pki --overlap 1d",
	}, certs.ActivateCA, &opts)
	cmd.Flags().Var(asDays(&opts.Overlap), "overlap", "time that ca.crt takes to reach every peer (default "+certs.DefaultOverlap.String()+")")
	cmd.Flags().BoolVar(&opts.Force, "force", false, "do not wait for the overlap")
	return cmd
}

func newRotateRetire(a *app) *cobra.Command {
	var opts certs.RotateOptions
	cmd := newRotateStep(a, &cobra.Command{
		Use:     "retire --dir DIR",
		Short:   "Take the old CA out of ca.crt",
		Long:    "Take the old CA out of ca.crt. Refused while a certificate that it issued is valid\nand not revoked.",
		Example: "  clustermesh certs rotate retire --dir pki",
	}, certs.RetireCA, &opts)
	cmd.Flags().BoolVar(&opts.Force, "force", false, "retire it although certificates of it are valid; whoever uses them is cut off")
	return cmd
}

// printRotation shows the CAs of a directory and what is to be done next.
func (a *app) printRotation(r certs.Rotation, dir string) error {
	t := table{header: []string{"CA", "PHASE", "SUBJECT", "EXPIRES", "FINGERPRINT"}}
	add := func(role string, i *certs.Info) {
		if i != nil {
			t.add(role, string(r.Phase), i.Subject, date(i.NotAfter), i.Fingerprint[:16])
		}
	}
	add("active", &r.Active)
	add("next", r.Next)
	add("old", r.Old)
	if err := a.print(r, t); err != nil || a.forMachines() {
		return err
	}
	return a.line(nextStep(r, dir))
}

func nextStep(r certs.Rotation, dir string) string {
	switch r.Phase {
	case certs.Prepared:
		return "Next: hand " + dir + "/ca.crt to every peer, then: clustermesh certs rotate activate --dir " + dir
	case certs.Activated:
		replaced := 0
		for _, w := range r.Waiting {
			if w.Replaced {
				replaced++
			}
		}
		return "Next: clustermesh certs renew --dir " + dir + ", hand the new certificates out, then: clustermesh certs rotate retire --dir " + dir +
			"\nValid certificates of the old CA: " + strconv.Itoa(len(r.Waiting)) + ", of which replaced: " + strconv.Itoa(replaced)
	}
	return "No rotation is under way."
}

// inspectDir shows the state of a CA directory.
func (a *app) inspectDir(dir string) error {
	r, err := certs.RotationOf(dir)
	if err != nil {
		return err
	}
	list, err := certs.IssuedBy(dir)
	if err != nil {
		return err
	}
	if a.forMachines() {
		return a.print(struct {
			Rotation certs.Rotation `json:"rotation"`
			Issued   []certs.Issued `json:"issued"`
		}{r, list}, table{})
	}
	if err := a.printRotation(r, dir); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "\nIssued and valid on %s:\n", date(time.Now()))
	return a.printIssued(list)
}
