package certs

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

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
	must(t, disk.Replace(to, disk.KeyMode, read1(t, from)))
	return to
}

func read1(t testing.TB, path string) []byte {
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
