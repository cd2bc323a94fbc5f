package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/mesh"
)

// TestPeerFileOfTheApiserver: one file can serve both; only accepts counts.
func TestPeerFileOfTheApiserver(t *testing.T) {
	a, err := parsePeerFile([]byte(`
ca-file: ca.crt
identity: {common-name: remote-east}
sees: all
revoked: false
accepts:
  cluster-id: 3
  pod-cidrs: [10.3.0.0/16, "fd00:3::/48"]
  namespaces: [shop]
  max-keys: 10
  max-bytes: 4096
  max-backends: 20
  max-service-backends: 5
  withdrawal-brake-percent: 0
`), 255)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID != 3 || len(a.Allow) != 2 || a.Allow[0] != netip.MustParsePrefix("10.3.0.0/16") || a.Namespaces[0] != "shop" ||
		a.MaxServices != 10 || a.MaxSlices != 10 || a.MaxBackends != 20 || a.MaxServiceBackends != 5 || a.maxKeys != 10 || a.maxBytes != 4096 || a.Brake != mesh.NoBrake {
		t.Errorf("%+v", a)
	}
	if a, err := parsePeerFile([]byte("sees: all"), 255); err != nil || a.Brake != 0 || a.ID != 0 || a.Allow != nil {
		t.Errorf("without accepts: %+v, %v", a, err)
	}
}

// TestBadPeerFiles: each problem names the member.
func TestBadPeerFiles(t *testing.T) {
	for text, want := range map[string]string{
		"":                                         "empty",
		"accept: {}":                               `member "accept" is not known`,
		"accepts: {quota: 1}":                      `member "accepts.quota" is not known`,
		"accepts: all":                             "accepts",
		"accepts: {}\n---\naccepts: {}":            "another document",
		"accepts: {cluster-id: 256}":               "accepts.cluster-id",
		"accepts: {cluster-id: -1}":                "cannot unmarshal",
		"accepts: {cluster-id: 0}":                 "accepts.cluster-id",
		"accepts: {max-backends: 0}":               "accepts.max-backends 0: must be positive",
		"accepts: {max-service-backends: 0}":       "accepts.max-service-backends 0: must be positive",
		"accepts:":                                 `member "accepts" has no value`,
		"accepts:\n  pod-cidrs:\n":                 `line 2: member "accepts.pod-cidrs" has no value`,
		"sees:\n  nodes: all\n  accepts: {}\n":     "line 3: accepts is inside of sees",
		"accepts: {pod-cidrs: [10.3.0.1/16]}":      `accepts.pod-cidrs "10.3.0.1/16"`,
		"accepts: {pod-cidrs: [10.3.0.1]}":         `accepts.pod-cidrs "10.3.0.1"`,
		"accepts: {pod-cidrs: []}":                 "accepts.pod-cidrs: an empty list",
		"accepts: {namespaces: []}":                "accepts.namespaces: an empty list",
		`accepts: {namespaces: [""]}`:              "accepts.namespaces: an entry is empty",
		"accepts: {max-keys: -1}":                  "accepts.max-keys",
		"accepts: {max-bytes: -1}":                 "accepts.max-bytes",
		"accepts: {max-backends: -1}":              "accepts.max-backends",
		"accepts: {withdrawal-brake-percent: 100}": "accepts.withdrawal-brake-percent",
		"accepts: {withdrawal-brake-percent: -1}":  "accepts.withdrawal-brake-percent",
	} {
		if _, err := parsePeerFile([]byte(text), 255); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

// TestPeerDirectory: the last good state stays, and for the grace that of a
// file that is gone; what others may write is not believed.
func TestPeerDirectory(t *testing.T) {
	dir := t.TempDir()
	d := newPeerDirectory(dir, 255)
	now := time.Now()
	look := func(wantID uint32, wantRefuse bool, wantProblems int) {
		t.Helper()
		if _, err := d.scan(now); err != nil {
			t.Fatal(err)
		}
		if a := d.known["east"]; a.ID != wantID || (a.Refuse != "") != wantRefuse || len(d.problemLines()) != wantProblems {
			t.Errorf("%+v with problems %v", a, d.problemLines())
		}
	}
	write(t, dir, "ca.crt", "no peer file")
	write(t, dir, ".hidden.yaml", "nonsense")
	look(0, false, 0)
	write(t, dir, "east.yaml", "nonsense")
	look(0, true, 1)
	write(t, dir, "east.yaml", "accepts: {cluster-id: 3}")
	look(3, false, 0)
	write(t, dir, "east.yaml", "accepts: {cluster-id: 300}")
	look(3, false, 1)
	write(t, dir, "east.yaml", "accepts: {cluster-id: 4}")
	if err := os.Chmod(filepath.Join(dir, "east.yaml"), 0o602); err != nil {
		t.Fatal(err)
	}
	look(3, false, 1)
	if err := os.Remove(filepath.Join(dir, "east.yaml")); err != nil {
		t.Fatal(err)
	}
	look(3, false, 0)
	now = now.Add(removalGrace)
	look(0, false, 0)
	write(t, dir, "east.yml", "accepts: {cluster-id: 3}") // nobody would read it
	look(0, true, 1)
	write(t, dir, "east.yaml", "accepts: {cluster-id: 4}")
	look(4, false, 0)
	if err := errors.Join(os.Remove(filepath.Join(dir, "east.yaml")), os.Remove(filepath.Join(dir, "east.yml"))); err != nil {
		t.Fatal(err)
	}
	look(4, false, 0)
	now = now.Add(removalGrace)
	look(0, false, 0)
	write(t, dir, "Not_A_Cluster.yaml", "accepts: {cluster-id: 3}")
	look(0, false, 1)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := d.scan(now); err == nil || !strings.Contains(err.Error(), "--peers") {
		t.Errorf("got %v", err)
	}
}

// TestAdmissionFlags: each problem names its flag.
func TestAdmissionFlags(t *testing.T) {
	err := Config{DenyCIDRs: []string{"10.0.0.0/8", "10.0.0.1", "nonsense"}, WithdrawalBrakePercent: 100, WithdrawalBrakeHold: -1,
		ProtectedNamespaces: []string{"kube-system", " shop", "a b", ""}}.Validate()
	for _, want := range []string{`--deny-cidr "nonsense"`, `--protected-namespaces " shop"`, `--protected-namespaces "a b"`, `--protected-namespaces ""`, "--withdrawal-brake-percent", "--withdrawal-brake-hold"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
