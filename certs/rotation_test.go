package certs

import (
	"bytes"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// TestRotationFailsNoHandshake renews leaves a hundred times and replaces the CA
// twenty times, each in the order an operator would, while clients connect
// without pause. Both sides verify: the client's certificate and CA bundle
// change as well as the server's.
func TestRotationFailsNoHandshake(t *testing.T) {
	b := newBench(t)
	srv, err := ServerTLS(b.server, nil)
	must(t, err)
	cli, err := ClientTLS(b.client, nil)
	must(t, err)
	addr := serve(t, srv)
	clients := []*hammer{startHammer(t, addr, cli), startHammer(t, addr, cli)}
	settle := func() {
		for _, h := range clients {
			h.wait(2) // every handshake that began before has ended
		}
	}
	leaves := 0
	renew := func() {
		list, err := Renew(b.dir, RenewOptions{Force: true})
		must(t, err)
		leaves += len(renewed(list))
		settle()
	}
	const rotations = 20
	first := issuePair(t, b.dir)
	for range rotations {
		renew()
		_, err := PrepareCA(b.dir, RotateOptions{})
		must(t, err)
		settle()
		_, err = ActivateCA(b.dir, RotateOptions{Force: true})
		must(t, err)
		settle()
		renew()
		_, err = RetireCA(b.dir, RotateOptions{Force: true})
		must(t, err)
		settle()
	}
	for leaves < 100 {
		renew()
	}
	total := 0
	for _, h := range clients {
		total += h.stop()
	}
	t.Logf("%d handshakes beside %d rotations of a leaf and %d of the CA: 0 failed", total, leaves, rotations)
	if err := dial(addr, rawClient(t, b, first)); err == nil {
		t.Error("a client of the first CA got in")
	}
}

// issuePair issues a remote certificate and keeps it from being renewed.
func issuePair(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	files, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "first"})
	must(t, err)
	pair := rawPair(t, files.Cert, files.Key)
	must(t, disk.Remove(files.Cert, files.Key))
	return pair
}

// hammer connects until it is stopped; the first failure ends the test.
type hammer struct {
	t     *testing.T
	count atomic.Int64
	step  chan struct{}
	quit  chan struct{}
	done  chan struct{}
}

func startHammer(t *testing.T, addr string, cfg *tls.Config) *hammer {
	h := &hammer{t: t, step: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(h.done)
		for {
			if err := dial(addr, cfg); err != nil {
				t.Errorf("handshake %d during rotation: %v", h.count.Load(), err)
				return
			}
			h.count.Add(1)
			select {
			case <-h.quit:
				return
			case h.step <- struct{}{}:
			default:
			}
		}
	}()
	return h
}

// wait returns after n more handshakes.
func (h *hammer) wait(n int64) {
	h.t.Helper()
	for from := h.count.Load(); h.count.Load() < from+n; {
		select {
		case <-h.step:
		case <-h.done:
			h.t.FailNow()
		}
	}
}

func (h *hammer) stop() int {
	close(h.quit)
	<-h.done
	return int(h.count.Load())
}

func TestRotationStepByStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newCADir(t)
		issue := func(cluster string) Files {
			files, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: cluster, Validity: 90 * day})
			must(t, err)
			return files
		}
		issue("west")
		wantPhase(t, dir, Steady, 1)
		old := leafOf(t, filepath.Join(dir, "ca.crt"))

		_, err := ActivateCA(dir, RotateOptions{Force: true})
		wantError(t, err, "prepare first")
		_, err = RetireCA(dir, RotateOptions{Force: true})
		wantError(t, err, "phase steady")

		r, err := PrepareCA(dir, RotateOptions{CA: CAOptions{Validity: 1000 * day}})
		must(t, err)
		again, err := PrepareCA(dir, RotateOptions{})
		must(t, err)
		if r.Phase != Prepared || again.Next.Fingerprint != r.Next.Fingerprint || r.Next.Subject != r.Active.Subject {
			t.Errorf("prepared twice: %+v, then %+v", r, again)
		}
		wantPhase(t, dir, Prepared, 2)
		if c := leafOf(t, issue("west").Cert); c.CheckSignatureFrom(old) != nil {
			t.Error("the prepared CA issues already")
		}

		_, err = ActivateCA(dir, RotateOptions{})
		wantError(t, err, "wait until 2000-01-01T00:15:00Z")
		time.Sleep(DefaultOverlap)
		r, err = ActivateCA(dir, RotateOptions{})
		must(t, err)
		wantPhase(t, dir, Activated, 2)
		wantMode(t, filepath.Join(dir, "ca-old.key"), 0o600)
		if len(r.Waiting) != 2 || r.Waiting[0].Replaced {
			t.Errorf("waiting for %+v", r.Waiting)
		}
		if _, err := PrepareCA(dir, RotateOptions{}); err == nil {
			t.Error("a second rotation began before the first was over")
		}

		_, err = RetireCA(dir, RotateOptions{})
		wantError(t, err, "not replaced yet: remote-west")
		list, err := Renew(dir, RenewOptions{})
		must(t, err)
		if len(list) != 1 || list[0].Reason != reasonOtherCA {
			t.Errorf("renewal after activation: %+v", list)
		}
		if c := leafOf(t, filepath.Join(dir, "remote-west.crt")); c.CheckSignatureFrom(old) == nil {
			t.Error("the old CA issues still")
		}
		_, err = RetireCA(dir, RotateOptions{})
		wantError(t, err, "2 certificates of the old CA are valid")
		wantError(t, err, "--force is safe")

		time.Sleep(90*day + time.Minute)
		_, err = RetireCA(dir, RotateOptions{})
		must(t, err)
		wantPhase(t, dir, Steady, 1)
		if leafOf(t, filepath.Join(dir, "ca.crt")).Equal(old) {
			t.Error("the old CA is still there")
		}
	})
}

// TestRotationRetiresWhenTheRestIsRevoked: revoking is the other way of ending
// what the old CA issued.
func TestRotationRetiresWhenTheRestIsRevoked(t *testing.T) {
	dir := newCADir(t)
	_, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "west"})
	must(t, err)
	_, err = PrepareCA(dir, RotateOptions{})
	must(t, err)
	_, err = ActivateCA(dir, RotateOptions{Force: true})
	must(t, err)
	_, err = Revoke(dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	_, err = RetireCA(dir, RotateOptions{})
	must(t, err)
	lists, err := readCRLs(filepath.Join(dir, crlFile))
	must(t, err)
	if len(lists) != 1 || crlSigner(lists[0], mustCerts(t, filepath.Join(dir, "ca.crt"))) == nil {
		t.Errorf("%d revocation lists are left, want that of the new CA", len(lists))
	}
}

// TestRotationSurvivesInterruption ends each step after each of its writes, and
// repeats it. At every point the directory must be able to issue, and what it
// issues must verify under its own ca.crt.
func TestRotationSurvivesInterruption(t *testing.T) {
	steps := []struct {
		name  string
		do    func(string, RotateOptions) (Rotation, error)
		phase Phase
	}{{"prepare", PrepareCA, Prepared}, {"activate", ActivateCA, Activated}, {"retire", RetireCA, Steady}}
	start := newCADir(t)
	for _, s := range steps {
		before := snapshot(t, start)
		_, err := s.do(start, RotateOptions{Force: true})
		must(t, err)
		after := snapshot(t, start)
		for _, mixed := range prefixes(s.name, before, after) {
			dir := restore(t, mixed)
			files, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "west"})
			must(t, err)
			if signerOf(leafOf(t, files.Cert), mustCerts(t, files.CA)) == nil {
				t.Errorf("%s interrupted: what was issued is not believed", s.name)
			}
			if r, err := RotationOf(dir); err != nil || r.Phase == s.phase {
				continue // the step was complete but for cleaning up
			}
			_, err = s.do(dir, RotateOptions{Force: true})
			must(t, err)
			wantPhase(t, dir, s.phase, map[Phase]int{Steady: 1, Prepared: 2, Activated: 2}[s.phase])
		}
	}
}

// prefixes are the directories after each write of a step but the last, in the
// order in which the step writes.
func prefixes(step string, before, after map[string][]byte) []map[string][]byte {
	order := map[string][]string{
		"prepare":  {"ca-next.key", "ca-next.crt", "ca.crt"},
		"activate": {"ca-old.key", "ca-old.crt", "ca.key", "ca-next.crt", "ca-next.key"},
		"retire":   {"ca.crt", "ca-old.crt", "ca-old.key"},
	}[step]
	var out []map[string][]byte
	for n := range order {
		mixed := map[string][]byte{}
		for name, data := range before {
			mixed[name] = data
		}
		for _, name := range order[:n] {
			delete(mixed, name)
			if data, ok := after[name]; ok {
				mixed[name] = data
			}
		}
		out = append(out, mixed)
	}
	return out
}

func snapshot(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	out := map[string][]byte{}
	for _, e := range entries {
		out[e.Name()] = bytes.Clone(read1(t, filepath.Join(dir, e.Name())))
	}
	return out
}

func restore(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	for name, data := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return dir
}

func wantPhase(t *testing.T, dir string, phase Phase, cas int) {
	t.Helper()
	r, err := RotationOf(dir)
	must(t, err)
	if got := len(mustCerts(t, filepath.Join(dir, "ca.crt"))); r.Phase != phase || got != cas {
		t.Errorf("phase %s with %d CAs in ca.crt, want %s with %d", r.Phase, got, phase, cas)
	}
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want one with %q", err, text)
	}
}
