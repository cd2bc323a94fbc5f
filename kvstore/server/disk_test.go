package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"golang.org/x/sys/unix"
)

// brokenDisk is set in the environment of the process that breaks its disk.
const brokenDisk = "CLUSTERMESH_TEST_BROKEN_DISK"

// TestDiskThatFillsUpEndsTheLife runs in a process of its own.
func TestDiskThatFillsUpEndsTheLife(t *testing.T) {
	if os.Getenv(brokenDisk) != "" {
		fillDisk(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskThatFillsUpEndsTheLife$", "-test.v")
	cmd.Env = append(os.Environ(), brokenDisk+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("%s", out)
	}
}

// fillDisk serves from a small tmpfs that something else fills, sees the life
// end, and starts another one there.
func fillDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=160m"); err != nil {
		t.Skipf("needs CAP_SYS_ADMIN to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, ended := runToEnd(t, Config{DataDir: dir})
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 1<<20))
	}
	f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // tens of MB have to be written
	defer cancel()
	for i := 0; ctx.Err() == nil; i++ {
		if err := s.Store().Apply(ctx, []kvstore.Op{{Key: fmt.Sprintf("k%d", i), Value: make([]byte, 256<<10)}}); err != nil {
			break
		}
	}
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("run ended with %v", err)
		}
	case <-time.After(time.Minute):
		panic("the life goes on with a full disk") // shows where everything hangs
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	w := start(t, plain("remote"), func(c *Config) { c.DataDir = dir })
	w.put("cilium/state/a=1")
}
