package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

func TestRenewKeepsNameAndChangesKey(t *testing.T) {
	dir := newCADir(t)
	_, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "east", Hosts: []string{"mesh.example.com", "192.0.2.7"}, Validity: 90 * day})
	must(t, err)
	_, err = Issue(dir, IssueRequest{Kind: Remote, Cluster: "west"})
	must(t, err)
	before := leafOf(t, filepath.Join(dir, "server-east.crt"))

	list, err := Renew(dir, RenewOptions{})
	must(t, err)
	if len(list) != 2 || list[0].Renewed || list[1].Renewed {
		t.Errorf("new certificates were renewed: %+v", list)
	}
	list, err = Renew(dir, RenewOptions{Force: true, Names: []string{"server-east"}})
	must(t, err)
	if len(list) != 1 || list[0].Name != "server-east" || !list[0].Renewed || list[0].Reason != "forced" {
		t.Errorf("forced renewal did %+v", list)
	}
	after := leafOf(t, filepath.Join(dir, "server-east.crt"))
	if string(after.RawSubject) != string(before.RawSubject) || !slices.Equal(sans(after), sans(before)) || !slices.Equal(after.ExtKeyUsage, before.ExtKeyUsage) {
		t.Errorf("names or usages changed: %v %q, before %v %q", after.Subject, sans(after), before.Subject, sans(before))
	}
	if string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) || after.SerialNumber.Cmp(before.SerialNumber) == 0 {
		t.Error("key or serial number stayed")
	}
	if d := time.Until(after.NotAfter); d < 89*day || d > 91*day {
		t.Errorf("valid for %s, want 90 days as before", d)
	}
	wantMode(t, filepath.Join(dir, "server-east.key"), 0o600)
	_, err = tls.LoadX509KeyPair(filepath.Join(dir, "server-east.crt"), filepath.Join(dir, "server-east.key"))
	must(t, err)
}

func TestRenewHealsAnInterruptedRenewal(t *testing.T) {
	b := newBench(t)
	copyTo(t, b.client.Key, b.server.Key) // as if the process ended between key and certificate
	list, err := Renew(b.dir, RenewOptions{})
	must(t, err)
	if got := renewed(list); !slices.Equal(got, []string{"server-east"}) {
		t.Errorf("renewed %q, want the pair that does not match alone", got)
	}
	_, err = ServerTLS(b.server, nil)
	must(t, err)
}

func renewed(list []Renewal) []string {
	var names []string
	for _, r := range list {
		if r.Renewed {
			names = append(names, r.Name)
		}
	}
	return names
}

func TestRenewLeavesOthersAlone(t *testing.T) {
	b, stranger := newBench(t), newBench(t)
	copyTo(t, stranger.client.Cert, filepath.Join(b.dir, "foreign.crt"))
	copyTo(t, stranger.client.Key, filepath.Join(b.dir, "foreign.key"))
	copyTo(t, b.client.Cert, filepath.Join(b.dir, "nokey.crt"))
	must(t, os.WriteFile(filepath.Join(b.dir, "garbage.crt"), []byte("x"), 0o600))
	list, err := Renew(b.dir, RenewOptions{Force: true})
	must(t, err)
	if got := renewed(list); !slices.Equal(got, []string{"remote-west", "server-east"}) {
		t.Errorf("renewed %q", got)
	}
	if _, err := Renew(b.dir, RenewOptions{Names: []string{"foreign", "server-east"}}); err == nil || !strings.Contains(err.Error(), "foreign.crt") {
		t.Errorf("asked for a foreign certificate by name: %v", err)
	}
}

// TestRenewDoesNotChaseTheEndOfItsCA: near the end of a CA each renewal would
// gain nothing, and the next would be due after half of the rest.
func TestRenewDoesNotChaseTheEndOfItsCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "pki")
		must(t, InitCA(dir, CAOptions{Validity: 10 * day}))
		_, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "west"})
		must(t, err)
		time.Sleep(6 * day)
		list, err := Renew(dir, RenewOptions{})
		if !errors.Is(err, errCAEnds) || len(renewed(list)) != 0 {
			t.Errorf("renewed %q, error %v", renewed(list), err)
		}
		_, err = PrepareCA(dir, RotateOptions{})
		must(t, err)
		_, err = ActivateCA(dir, RotateOptions{Force: true})
		must(t, err)
		_, err = Renew(dir, RenewOptions{})
		must(t, err)
		if d := time.Until(leafOf(t, filepath.Join(dir, "remote-west.crt")).NotAfter); d != defaultLife {
			t.Errorf("after the rotation it is valid for %s, want %s", d, defaultLife)
		}
	})
}

type renewals struct {
	mu   sync.Mutex
	at   []time.Duration
	fail int
	end  time.Time
}

// so is what happened so far.
func (r *renewals) so() (fail int, at []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fail, slices.Clone(r.at)
}

func (r *renewals) run(t *testing.T, cfg RenewerConfig) (stop func()) {
	start := time.Now()
	cfg.Renewed = func(Renewal) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.at = append(r.at, time.Since(start))
	}
	cfg.Looked = func(end time.Time, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.end = end
		if err != nil {
			r.fail++
		}
	}
	renewer, err := NewRenewer(cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- renewer.Run(ctx) }()
	return func() {
		cancel()
		must(t, <-done)
	}
}

// TestRenewerKeepsShortLives: a certificate of a minute is renewed twice in it,
// not all the time because it begins in the past.
func TestRenewerKeepsShortLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newCADir(t)
		_, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "east", Validity: time.Minute})
		must(t, err)
		var seen renewals
		stop := seen.run(t, RenewerConfig{Dir: dir})
		time.Sleep(10*time.Minute + 15*time.Second)
		synctest.Wait()
		stop()
		if n := len(seen.at); n != 20 {
			t.Errorf("renewed %d times in 10 minutes, want 20: %v", n, seen.at)
		}
	})
}

func TestRenewerRenewsAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newCADir(t)
		_, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "east", Validity: day})
		must(t, err)
		var seen renewals
		stop := seen.run(t, RenewerConfig{Dir: dir, Interval: 100 * day})
		time.Sleep(60*time.Hour + time.Minute)
		synctest.Wait()
		stop()
		const want = 12 * time.Hour
		if len(seen.at) != 5 {
			t.Fatalf("renewed %d times in 60 hours, want 5: %v", len(seen.at), seen.at)
		}
		for i, at := range seen.at {
			if d := at - time.Duration(i+1)*want; d < -time.Second || d > 10*time.Second {
				t.Errorf("renewal %d after %s, want %s", i, at, time.Duration(i+1)*want)
			}
		}
		if d := time.Until(seen.end); d < 11*time.Hour || d > day {
			t.Errorf("the first end reported is %s away", d)
		}
	})
}

func TestRenewerRetriesLessAndLessAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newCADir(t)
		_, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "east", Validity: day})
		must(t, err)
		key := filepath.Join(dir, "ca.key")
		must(t, os.Rename(key, key+".away"))
		var seen renewals
		stop := seen.run(t, RenewerConfig{Dir: dir})
		time.Sleep(13 * time.Hour)
		synctest.Wait()
		// 1, 2, 4, 8, 16 and 32 minutes, and then every hour.
		if fail, at := seen.so(); fail < 17 || fail > 20 || len(at) != 0 {
			t.Errorf("failed %d times in 13 hours, renewed %v", fail, at)
		}
		must(t, os.Rename(key+".away", key))
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		stop()
		if len(seen.at) != 1 {
			t.Errorf("after the CA key came back, renewed %v", seen.at)
		}
	})
}

func TestRenewerNoticesARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newCADir(t)
		_, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "east"})
		must(t, err)
		var seen renewals
		stop := seen.run(t, RenewerConfig{Dir: dir})
		time.Sleep(10 * time.Minute)
		_, err = PrepareCA(dir, RotateOptions{})
		must(t, err)
		time.Sleep(DefaultOverlap)
		_, err = ActivateCA(dir, RotateOptions{})
		must(t, err)
		time.Sleep(time.Hour)
		synctest.Wait()
		stop()
		if len(seen.at) != 1 {
			t.Errorf("renewed at %v, want once within the hour after the rotation", seen.at)
		}
	})
}

func TestRenewersOfOneDirectoryTakeTurns(t *testing.T) {
	dir := newCADir(t)
	_, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "east"})
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "server-east.key")))
	must(t, os.WriteFile(filepath.Join(dir, "server-east.key"), nil, 0o600)) // due, because it does not match
	var done sync.WaitGroup
	counts := make(chan int, 8)
	for range cap(counts) {
		done.Go(func() {
			list, err := Renew(dir, RenewOptions{})
			if err != nil {
				t.Error(err)
			}
			counts <- len(renewed(list))
		})
	}
	done.Wait()
	close(counts)
	total := 0
	for n := range counts {
		total += n
	}
	if total != 1 {
		t.Errorf("eight renewers renewed %d times, want once", total)
	}
}

func TestRenewerConfigSaysAllProblems(t *testing.T) {
	_, err := NewRenewer(RenewerConfig{Interval: -1})
	if err == nil || !strings.Contains(err.Error(), "directory") || !strings.Contains(err.Error(), "interval") {
		t.Errorf("error %v", err)
	}
}

// TestRecordThatCannotBeReadStopsIssuing: a certificate that nobody knows of
// could not be waited for or revoked.
func TestRecordThatCannotBeReadStopsIssuing(t *testing.T) {
	b := newBench(t)
	must(t, disk.Replace(filepath.Join(b.dir, issuedFile), disk.KeyMode, []byte("[{")))
	before := read1(t, b.server.Cert)
	if _, err := Issue(b.dir, IssueRequest{Kind: Server, Cluster: "east"}); err == nil || !strings.Contains(err.Error(), issuedFile) {
		t.Errorf("error %v", err)
	}
	if string(read1(t, b.server.Cert)) != string(before) {
		t.Error("the certificate was replaced")
	}
	must(t, os.Remove(filepath.Join(b.dir, issuedFile)))
	list, err := IssuedBy(b.dir)
	must(t, err)
	if len(list) != 2 {
		t.Errorf("without a record, %d certificates are known from their files, want 2", len(list))
	}
	if _, err := IssuedBy(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a CA: %v", err)
	}
}

// TestRenewerSaysWhoseDirectoryItIs: a renewal that is refused for its
// directory's owner is a problem like any other, and not a silent one.
func TestRenewerSaysWhoseDirectoryItIs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	t.Setenv("SUDO_UID", "")
	b := newBench(t)
	must(t, os.Chown(b.dir, 12345, -1))
	logs := &syncBuffer{}
	var told error
	r, err := NewRenewer(RenewerConfig{Dir: b.dir, Log: slog.New(slog.NewTextHandler(logs, nil)), Looked: func(_ time.Time, err error) { told = err }})
	must(t, err)
	if _, err := r.Look(); err == nil || told == nil || !strings.Contains(told.Error(), "user 12345") || !strings.Contains(logs.String(), "could not renew certificates") {
		t.Errorf("look: %v, told: %v, logged:\n%s", err, told, logs)
	}
}
