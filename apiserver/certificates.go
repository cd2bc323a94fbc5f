package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/prometheus/client_golang/prometheus"
)

// certificates are what the gateway shows and believes. The files are followed,
// whoever replaces them; with a CA directory the server's certificate is renewed
// here.
type certificates struct {
	tls     *tls.Config
	trust   *certs.Trust
	renewer *certs.Renewer // nil without a CA directory
	expiry  *prometheus.Desc
	left    *prometheus.Desc
	failing *prometheus.Desc
	renewed prometheus.Counter
	failed  prometheus.Counter

	mu      sync.Mutex
	problem string // why the last look at the CA directory failed
}

// newCertificates renews what is due and reads the files: a certificate that
// ended while the process was down must not keep it from starting.
func newCertificates(config Config, log *slog.Logger) (*certificates, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "clustermesh_certificate_" + name, Help: help})
	}
	c := &certificates{
		expiry: prometheus.NewDesc("clustermesh_certificate_expiry_timestamp_seconds",
			"Unix time at which the server's certificate in use, or the last CA of readers, ends.", []string{"certificate"}, nil),
		left: prometheus.NewDesc("clustermesh_certificate_remaining_ratio",
			"Part of its life that the server's certificate in use still has, from 1 to 0.", []string{"certificate"}, nil),
		failing: prometheus.NewDesc("clustermesh_certificate_renewal_failing",
			"1 while the server's certificate cannot be renewed in the CA directory, else 0.", nil, nil),
		renewed: counter("renewals_total", "Certificates of the server that were renewed in the CA directory."),
		failed:  counter("renewal_errors_total", "Failed attempts to renew the server's certificate in the CA directory."),
	}
	files := config.tlsFiles()
	if config.CADir != "" {
		if err := c.keep(config.CADir, files, log); err != nil {
			return nil, err
		}
	}
	var err error
	if c.tls, err = certs.ServerTLS(files, log); err != nil {
		return nil, err
	}
	c.trust, err = certs.NewTrust(files, log)
	return c, err
}

// keep begins to renew the server's certificate in a CA directory, and gives it
// a revocation list if it has none: one that appears later is not followed.
func (c *certificates) keep(dir string, files certs.ServerFiles, log *slog.Logger) (err error) {
	c.renewer, err = certs.NewRenewer(certs.RenewerConfig{
		Dir: dir, Names: []string{strings.TrimSuffix(filepath.Base(files.Cert), ".crt")}, Log: log,
		Looked:  func(_ time.Time, err error) { c.looked(err) },
		Renewed: func(certs.Renewal) { c.renewed.Inc() },
	})
	if err != nil {
		return err
	}
	_, _ = c.renewer.Look() // a failure is told to looked, and what is there may still do
	if _, err := os.Stat(files.CRL); !errors.Is(err, fs.ErrNotExist) || files.CRL != filepath.Join(dir, caCRL) {
		return nil
	}
	if _, err := certs.Revoke(dir, certs.RevokeRequest{}); err != nil {
		return fmt.Errorf("--ca-dir %q: make its revocation list: %w", dir, err)
	}
	return nil
}

func (c *certificates) looked(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem = ""
	if err != nil {
		c.problem = err.Error()
		c.failed.Inc()
	}
}

// run renews until ctx ends.
func (c *certificates) run(ctx context.Context) error {
	if c.renewer == nil {
		return nil
	}
	return c.renewer.Run(ctx)
}

// inUse returns the certificate that the next reader will be shown.
func (c *certificates) inUse() (*x509.Certificate, error) {
	now, err := c.tls.GetConfigForClient(&tls.ClientHelloInfo{})
	if err != nil {
		return nil, err
	}
	return now.Certificates[0].Leaf, nil
}

// complaints says what will stop readers from connecting if nobody acts.
func (c *certificates) complaints(now time.Time) (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem != "" {
		all = append(all, "certificate: not renewed: "+c.problem)
	}
	leaf, err := c.inUse()
	if err != nil {
		return append(all, "certificate: "+err.Error())
	}
	if left := leaf.NotAfter.Sub(now); left < leaf.NotAfter.Sub(leaf.NotBefore)/10 {
		all = append(all, fmt.Sprintf("certificate: the server's ends at %s; renew it with: clustermesh certs renew", leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	return all
}

// remaining is the part of a certificate's life that it still has.
func remaining(leaf *x509.Certificate, now time.Time) float64 {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return min(max(float64(leaf.NotAfter.Sub(now))/float64(life), 0), 1)
}

// problems is 1 while the certificate cannot be renewed.
func (c *certificates) problems() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem != "" {
		return 1
	}
	return 0
}

// Describe sends all descriptions.
func (c *certificates) Describe(out chan<- *prometheus.Desc) {
	out <- c.expiry
	out <- c.left
	out <- c.failing
	c.renewed.Describe(out)
	c.failed.Describe(out)
}

// Collect sends the present values.
func (c *certificates) Collect(out chan<- prometheus.Metric) {
	if leaf, err := c.inUse(); err == nil {
		gauge(out, c.expiry, int(leaf.NotAfter.Unix()), "server")
		gauge(out, c.left, remaining(leaf, time.Now()), "server")
	}
	gauge(out, c.failing, c.problems())
	gauge(out, c.expiry, int(c.trust.End().Unix()), "client-ca")
	c.renewed.Collect(out)
	c.failed.Collect(out)
}
