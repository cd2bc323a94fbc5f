package certs

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestRotationFailsNoHandshake renews the leaves a hundred times and moves the
// whole mesh to a new CA in the order an operator would, while clients connect
// without pause.
func TestRotationFailsNoHandshake(t *testing.T) {
	b := newBench(t)
	newDir := newCADir(t)
	// The bundles are files of their own, as they are in a cluster.
	b.server.ClientCA = copyTo(t, b.server.ClientCA, filepath.Join(b.dir, "bundle-server.crt"))
	b.client.CA = copyTo(t, b.client.CA, filepath.Join(b.dir, "bundle-client.crt"))
	srv, err := ServerTLS(b.server, nil)
	must(t, err)
	cli, err := ClientTLS(b.client, nil)
	must(t, err)
	addr := serve(t, srv)

	stop := make(chan struct{})
	done := hammer(t, addr, cli, stop)
	reissue := func(dir string) {
		for _, req := range []IssueRequest{{Kind: Server, Cluster: "east"}, {Kind: Remote, Cluster: "west"}} {
			files, err := Issue(dir, req)
			must(t, err)
			if dir != b.dir {
				copyTo(t, files.Key, filepath.Join(b.dir, filepath.Base(files.Key)))
				copyTo(t, files.Cert, filepath.Join(b.dir, filepath.Base(files.Cert)))
			}
			must(t, dial(addr, cli))
		}
	}
	for range 50 {
		reissue(b.dir)
	}
	oldCA, newCA := read1(t, filepath.Join(b.dir, "ca.crt")), read1(t, filepath.Join(newDir, "ca.crt"))
	for _, path := range []string{b.server.ClientCA, b.client.CA} {
		must(t, writeFile(path, certMode, append(bytes.Clone(oldCA), newCA...)))
	}
	for range 50 {
		reissue(newDir)
	}
	old := issueOld(t, b.dir)
	oldClient := rawPair(t, old.Cert, old.Key)
	reissue(newDir)
	for _, path := range []string{b.server.ClientCA, b.client.CA} {
		must(t, writeFile(path, certMode, newCA))
	}
	must(t, dial(addr, cli))
	close(stop)
	if n := <-done; n == 0 {
		t.Error("no handshake ran during the rotation")
	} else {
		t.Logf("%d handshakes beside 102 rotations of a leaf and 2 of the CA bundle, none failed", n)
	}
	present := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &oldClient, nil }
	if err := dial(addr, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: present}); err == nil {
		t.Error("a client of the withdrawn CA got in")
	}
	oldServer := serve(t, &tls.Config{Certificates: []tls.Certificate{rawPair(t, filepath.Join(b.dir, "old-server.crt"), filepath.Join(b.dir, "old-server.key"))}})
	if err := dial(oldServer, cli); err == nil {
		t.Error("a server of the withdrawn CA was believed")
	}
}

// issueOld issues a remote certificate, which it returns, and the pair
// old-server.crt and old-server.key with the CA in dir.
func issueOld(t *testing.T, dir string) Files {
	t.Helper()
	files, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "old"})
	must(t, err)
	srv, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "old", Hosts: []string{"east.mesh.cilium.io"}})
	must(t, err)
	copyTo(t, srv.Cert, filepath.Join(dir, "old-server.crt"))
	copyTo(t, srv.Key, filepath.Join(dir, "old-server.key"))
	return files
}

// hammer connects until stop is closed and then reports how often; a failure
// ends the test with the first error.
func hammer(t *testing.T, addr string, cfg *tls.Config, stop <-chan struct{}) <-chan int {
	done := make(chan int, 1)
	go func() {
		n := 0
		defer func() { done <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := dial(addr, cfg); err != nil {
				t.Errorf("handshake %d during rotation: %v", n, err)
				return
			}
		}
	}()
	return done
}

// TestHalfWrittenFilesKeepTheLastGoodOnes replaces each file by each of its
// beginnings, and by the other pair's file, on both sides.
func TestHalfWrittenFilesKeepTheLastGoodOnes(t *testing.T) {
	b := newBench(t)
	b.client.CA = copyTo(t, b.client.CA, filepath.Join(b.dir, "client-ca.crt"))
	logs := &syncBuffer{}
	log := slog.New(slog.NewTextHandler(logs, nil))
	srv, err := ServerTLS(b.server, log)
	must(t, err)
	cli, err := ClientTLS(b.client, log)
	must(t, err)
	addr := serve(t, srv)
	strangers := newBench(t)
	files := map[string]string{
		b.server.Cert: strangers.server.Cert, b.server.Key: strangers.server.Key, b.server.ClientCA: "",
		b.client.Cert: strangers.client.Cert, b.client.Key: strangers.client.Key, b.client.CA: "",
	}
	for path, stranger := range files {
		whole := read1(t, path)
		for _, cut := range []int{0, 1, len(whole) / 3, len(whole) / 2, len(whole) - 2} {
			must(t, os.WriteFile(path, whole[:cut], 0o600)) // in place, not by rename
			if err := dial(addr, cli); err != nil {
				t.Errorf("%s cut to %d of %d bytes: %v", filepath.Base(path), cut, len(whole), err)
			}
		}
		if stranger != "" {
			copyTo(t, stranger, path)
			if err := dial(addr, cli); err != nil {
				t.Errorf("%s of another pair: %v", filepath.Base(path), err)
			}
		}
		must(t, os.Remove(path))
		if err := dial(addr, cli); err != nil {
			t.Errorf("%s removed: %v", filepath.Base(path), err)
		}
		must(t, os.WriteFile(path, whole, 0o600))
		if err := dial(addr, cli); err != nil {
			t.Errorf("%s restored: %v", filepath.Base(path), err)
		}
	}
	if !strings.Contains(logs.String(), "kept the previous certificate") {
		t.Error("nothing was logged")
	}
}

func TestUnusableFileIsLoggedOnceAndRecoveryOnce(t *testing.T) {
	b := newBench(t)
	logs := &syncBuffer{}
	srv, err := ServerTLS(b.server, slog.New(slog.NewTextHandler(logs, nil)))
	must(t, err)
	cli, err := ClientTLS(b.client, nil)
	must(t, err)
	addr := serve(t, srv)
	whole := read1(t, b.server.Cert)
	must(t, os.WriteFile(b.server.Cert, whole[:100], 0o600))
	for range 5 {
		must(t, dial(addr, cli))
	}
	must(t, os.WriteFile(b.server.Cert, whole, 0o600))
	for range 5 {
		must(t, dial(addr, cli))
	}
	if bad, good := strings.Count(logs.String(), "kept the previous"), strings.Count(logs.String(), "reloaded"); bad != 1 || good != 1 {
		t.Errorf("logged %d complaints and %d reloads, want one each:\n%s", bad, good, logs)
	}
}

// TestReplacementMustBeUsable checks that a renewal gone wrong does not put an
// expired certificate or one of the wrong kind in place of a working one.
func TestReplacementMustBeUsable(t *testing.T) {
	b := newBench(t)
	srv, err := ServerTLS(b.server, nil)
	must(t, err)
	cli, err := ClientTLS(b.client, nil)
	must(t, err)
	addr := serve(t, srv)
	copyTo(t, b.client.Key, b.server.Key)
	copyTo(t, b.client.Cert, b.server.Cert)
	if err := dial(addr, cli); err != nil {
		t.Errorf("client certificate in place of the server's: %v", err)
	}
}

// TestSameSizeSameMtimeIsNoticed rewrites a file in place within one tick of
// the file system's clock.
func TestSameSizeSameMtimeIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	at := time.Now()
	put := func(s string) {
		must(t, os.WriteFile(path, []byte(s), 0o600))
		must(t, os.Chtimes(path, at, at))
	}
	put("one")
	l, err := newLive([]string{path}, slog.New(slog.DiscardHandler), func(c [][]byte) (string, error) { return string(c[0]), nil })
	must(t, err)
	put("two")
	if got := l.get(); got != "two" {
		t.Errorf("got %q, want the new content", got)
	}
}

func BenchmarkUnchanged(b *testing.B) {
	dir := b.TempDir()
	var paths []string
	for _, name := range []string{"crt", "key", "ca"} {
		path := filepath.Join(dir, name)
		old := time.Now().Add(-time.Hour)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			b.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			b.Fatal(err)
		}
		paths = append(paths, path)
	}
	l, err := newLive(paths, slog.New(slog.DiscardHandler), func(c [][]byte) (int, error) { return len(c), nil })
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		l.get()
	}
}

func copyTo(t *testing.T, from, to string) string {
	t.Helper()
	must(t, writeFile(to, keyMode, read1(t, from)))
	return to
}

func read1(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestProjectedVolume rotates as kubelet does for a mounted secret: the files
// are symbolic links through a directory link that is replaced in one step.
func TestProjectedVolume(t *testing.T) {
	b := newBench(t)
	vol := t.TempDir()
	project := func(version string, srv ServerFiles) {
		dir := filepath.Join(vol, version)
		must(t, os.Mkdir(dir, 0o700))
		copyTo(t, srv.Cert, filepath.Join(dir, "tls.crt"))
		copyTo(t, srv.Key, filepath.Join(dir, "tls.key"))
		copyTo(t, srv.ClientCA, filepath.Join(dir, "ca.crt"))
		must(t, os.Symlink(version, filepath.Join(vol, "..data.new")))
		must(t, os.Rename(filepath.Join(vol, "..data.new"), filepath.Join(vol, "..data")))
	}
	project("..v1", b.server)
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(vol, name)))
	}
	srv, err := ServerTLS(ServerFiles{Cert: vol + "/tls.crt", Key: vol + "/tls.key", ClientCA: vol + "/ca.crt"}, nil)
	must(t, err)
	addr := serve(t, srv)
	cli, err := ClientTLS(b.client, nil)
	must(t, err)
	must(t, dial(addr, cli))

	next := newBench(t) // everything is new, the CA too
	project("..v2", next.server)
	if err := dial(addr, cli); err == nil {
		t.Error("the old mesh still gets in")
	}
	cli, err = ClientTLS(next.client, nil)
	must(t, err)
	must(t, dial(addr, cli))
}
