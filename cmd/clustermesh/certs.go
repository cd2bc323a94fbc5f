package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/certs"
)

func newCerts(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Create a CA and look after its certificates",
		Long: `Create a CA, issue its certificates, and look after them.

A cluster needs three certificates: "server" for its clustermesh-apiserver,
"local" for its own agents, and "remote" for what connects from it to the
apiservers of other clusters. Running processes take up renewed files by
themselves.`,
		Example: "  clustermesh certs init --dir pki\n  clustermesh certs issue --dir pki --kind remote --cluster east\n  clustermesh certs inspect pki/*.crt",
	}
	cmd.AddCommand(newCertsInit(a), newCertsIssue(a), newCertsInspect(a), newCertsRenew(a), newCertsRevoke(a), newCertsRotate(a), newCertsCheck(a))
	return asGroup(cmd)
}

func newCertsInit(a *app) *cobra.Command {
	var dir string
	var opts certs.CAOptions
	cmd := &cobra.Command{
		Use:     "init --dir DIR",
		Short:   "Create a CA; never replaces one",
		Long:    "Create a CA in DIR: ca.crt, which peers need, and ca.key, which must stay secret.\nAn existing CA is never replaced.",
		Example: "  clustermesh certs init --dir pki --name 'galaxy CA'",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := usage(needFlag("dir", dir), notNegative(opts.Validity)); err != nil {
				return err
			}
			if err := certs.InitCA(dir, opts); err != nil {
				return err
			}
			return a.printCA(dir)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory for ca.crt and ca.key, created with mode 0700 (required)")
	cmd.Flags().StringVar(&opts.Name, "name", "clustermesh CA", "common name of the CA")
	cmd.Flags().Var(asDays(&opts.Validity), "validity", "how long the CA is valid, such as 3650d (default ten years)")
	return cmd
}

func (a *app) printCA(dir string) error {
	files := certs.Files{Cert: filepath.Join(dir, "ca.crt"), Key: filepath.Join(dir, "ca.key")}
	files.CA = files.Cert
	infos, err := certs.Inspect(files.Cert)
	if err != nil {
		return err
	}
	files.NotAfter = infos[0].NotAfter
	return a.printFiles(files)
}

func (a *app) printFiles(f certs.Files) error {
	t := table{header: []string{"CERTIFICATE", "KEY", "CA", "EXPIRES"}}
	t.add(f.Cert, f.Key, f.CA, date(f.NotAfter))
	return a.print(f, t)
}

func newCertsIssue(a *app) *cobra.Command {
	var dir, kind string
	var req certs.IssueRequest
	cmd := &cobra.Command{
		Use:   "issue --dir DIR --kind server|remote|local --cluster NAME",
		Short: "Issue or renew a certificate",
		Long: `Issue a certificate with the CA in DIR and write it there with its key. A
certificate of the same kind and cluster is replaced, which is how it is renewed.

Server certificates are valid for <cluster>.mesh.cilium.io,
localhost and every --host.`,
		Example: "  clustermesh certs issue --dir pki --kind server --cluster east --host mesh.east.example.com --host 192.0.2.10\n  clustermesh certs issue --dir pki --kind remote --cluster east --validity 90d",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			req.Kind = certs.Kind(kind)
			if err := usage(needFlag("dir", dir), req.Validate()); err != nil {
				return err
			}
			files, err := certs.Issue(dir, req)
			if err != nil {
				return err
			}
			return a.printFiles(files)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the CA and of the new files (required)")
	cmd.Flags().StringVar(&kind, "kind", "", "server, remote or local (required)")
	cmd.Flags().StringVar(&req.Cluster, "cluster", "", "name of the cluster that uses the certificate; may be left out for remote")
	cmd.Flags().StringArrayVar(&req.Hosts, "host", nil, "DNS name or IP address under which the server is reached; may be repeated")
	cmd.Flags().Var(asDays(&req.Validity), "validity", "how long it is valid, such as 90d or 12h (default one year)")
	return cmd
}

func newCertsInspect(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "inspect FILE... | --dir DIR",
		Short:   "Show what certificates are for and until when",
		Long:    "Show what certificates are for and until when or, with --dir, the CAs of a\ndirectory, how far their rotation is, and what they have issued.",
		Example: "  clustermesh certs inspect pki/*.crt\n  clustermesh certs inspect --dir pki",
		Args: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				return cobra.MinimumNArgs(1)(cmd, args)
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(_ *cobra.Command, files []string) error {
			if len(files) == 0 {
				return a.inspectDir(dir)
			}
			return a.inspectFiles(files)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of a CA, instead of files")
	return cmd
}

func (a *app) inspectFiles(files []string) error {
	var infos []certs.Info
	var errs []error
	for _, file := range files {
		found, err := certs.Inspect(file)
		infos, errs = append(infos, found...), append(errs, err)
	}
	return errors.Join(a.printInfos(infos), errors.Join(errs...))
}

func (a *app) printInfos(infos []certs.Info) error {
	if len(infos) == 0 {
		return nil
	}
	t := table{header: []string{"FILE", "KIND", "SUBJECT", "ISSUER", "EXPIRES", "STATE", "NAMES"}}
	for _, i := range infos {
		t.add(i.File, string(i.Kind), i.Subject, i.Issuer, date(i.NotAfter), validity(i, time.Now()), strings.Join(i.SANs, ","))
	}
	return a.print(infos, t)
}

func validity(i certs.Info, now time.Time) string {
	switch {
	case i.Valid(now):
		return "valid"
	case now.Before(i.NotBefore):
		return "not yet valid"
	}
	return "expired"
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

func needFlag(name, value string) error {
	if value == "" {
		return fmt.Errorf("--%s is not set", name)
	}
	return nil
}

func notNegative(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("validity %s is negative", d)
	}
	return nil
}
