package apiserver

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

// shown returns the serial number of the certificate that a reader is shown, or
// nothing while it is not let in.
func (w *world) shown(reader certs.Files) string {
	w.Helper()
	config, err := certs.ClientTLS(certs.ClientFiles{Cert: reader.Cert, Key: reader.Key, CA: reader.CA, ServerName: "127.0.0.1"}, nil)
	w.must(err)
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", w.addresses.Gateway.String(), config)
	if err != nil {
		return ""
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// eventually waits until ok holds.
func (w *world) eventually(what string, ok func() bool) {
	w.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("not reached: %s", what)
		}
	}
}

// TestRenewsItsOwnCertificate runs on a CA directory whose server certificate lives
// for seconds: readers are shown another in time, and none is cut off.
func TestRenewsItsOwnCertificate(t *testing.T) {
	w := newWorld(t)
	w.config.TLS, w.config.CADir = certs.ServerFiles{}, w.pki
	w.issue(certs.IssueRequest{Kind: certs.Server, Cluster: "east", Validity: 6 * time.Second})
	reader := w.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "west"})
	w.start()
	conn := w.dial(reader)
	first := w.shown(reader)
	w.eventually("another certificate is shown", func() bool { now := w.shown(reader); return now != "" && now != first })
	if _, err := conn.Range(t.Context(), "cilium/state/", "cilium/state0", 0, 0); err != nil {
		t.Errorf("a reader that was connected: %v", err)
	}
	var metrics string
	w.eventually("the renewal is counted", func() bool {
		_, metrics = w.get("/metrics")
		return !strings.Contains(metrics, "clustermesh_certificate_renewals_total 0")
	})
	for _, want := range []string{
		`clustermesh_certificate_expiry_timestamp_seconds{certificate="server"} 1`, `clustermesh_certificate_expiry_timestamp_seconds{certificate="client-ca"} 2`,
		"clustermesh_certificate_renewal_errors_total 0", "clustermesh_certificate_renewals_total ",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	// Its own directory comes with a revocation list from the start.
	_, err := certs.Revoke(w.pki, certs.RevokeRequest{Files: []string{reader.Cert}})
	w.must(err)
	select {
	case <-conn.Done():
	case <-time.After(patience):
		t.Error("the connection of a revoked reader stayed open")
	}
	if _, err := w.tryDial(reader); err == nil {
		t.Error("a revoked reader got in")
	}
}

// TestRenewalThatFailsIsToldAndHarmless takes the CA's key away.
func TestRenewalThatFailsIsToldAndHarmless(t *testing.T) {
	w := newWorld(t)
	w.config.TLS, w.config.CADir = certs.ServerFiles{}, w.pki
	w.issue(certs.IssueRequest{Kind: certs.Server, Cluster: "east", Validity: time.Hour})
	reader := w.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "west"})
	_, err := certs.Revoke(w.pki, certs.RevokeRequest{})
	w.must(err)
	w.must(os.Remove(filepath.Join(w.pki, "ca.key")))
	w.start()
	w.dial(reader)
	if code, body := w.get("/readyz"); code != 200 || !strings.Contains(body, "problem: certificate: not renewed: ") || !strings.Contains(body, "ca.key") {
		t.Errorf("/readyz says %d %s", code, body)
	}
	if _, metrics := w.get("/metrics"); strings.Contains(metrics, "clustermesh_certificate_renewal_errors_total 0") {
		t.Error("the failure is not counted")
	}
}

// TestCertificateAtItsEndIsToldAndReplaced runs on files that somebody else
// renews, as kubelet mounts a Secret: a link to a directory is replaced.
func TestCertificateAtItsEndIsToldAndReplaced(t *testing.T) {
	w := newWorld(t)
	reader := w.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "west"})
	mount := t.TempDir()
	project := func(version string, life time.Duration) {
		f := w.issue(certs.IssueRequest{Kind: certs.Server, Cluster: "east", Validity: life})
		w.must(os.Mkdir(filepath.Join(mount, version), 0o700))
		for name, from := range map[string]string{"tls.crt": f.Cert, "tls.key": f.Key, "ca.crt": f.CA} {
			raw, err := os.ReadFile(from)
			w.must(err)
			w.must(os.WriteFile(filepath.Join(mount, version, name), raw, 0o600))
		}
		w.must(os.Symlink(version, filepath.Join(mount, "..new")))
		w.must(os.Rename(filepath.Join(mount, "..new"), filepath.Join(mount, "..data")))
	}
	project("..1", 20*time.Second) // of which a tenth and more, the allowance for clocks, is past
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		w.must(os.Symlink(filepath.Join("..data", name), filepath.Join(mount, name)))
	}
	w.config.TLS, w.config.TLSDir = certs.ServerFiles{}, mount
	w.start()
	conn := w.dial(reader)
	if _, body := w.get("/readyz"); !strings.Contains(body, "problem: certificate: the server's ends at ") {
		t.Errorf("/readyz says %s", body)
	}
	first := w.shown(reader)
	project("..2", time.Hour)
	w.eventually("the next certificate is shown", func() bool { now := w.shown(reader); return now != "" && now != first })
	if _, body := w.get("/readyz"); strings.Contains(body, "certificate") {
		t.Errorf("/readyz says %s", body)
	}
	if _, err := conn.Range(t.Context(), "cilium/state/", "cilium/state0", 0, 0); err != nil {
		t.Errorf("a reader that was connected: %v", err)
	}
}

func TestCADirMustHoldTheCertificateInUse(t *testing.T) {
	w := newWorld(t)
	other := w.config.TLS
	for name, change := range map[string]func(*Config){
		"elsewhere": func(c *Config) { c.TLS, c.CADir = other, t.TempDir() },
		"mounted":   func(c *Config) { c.TLS, c.TLSDir, c.CADir = certs.ServerFiles{}, t.TempDir(), w.pki },
		"no pair":   func(c *Config) { c.TLS, c.CADir = other, w.pki; c.TLS.Key = filepath.Join(w.pki, "ca.key") },
	} {
		config := w.config
		change(&config)
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), "--ca-dir") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.config.CADir = w.pki
	w.must(w.config.Validate())
}
