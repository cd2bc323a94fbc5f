package disk

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// writeEnv names the file that this program writes a page of, if it is the
// process on the disk.
const writeEnv = "CLUSTERMESH_TEST_WRITE"

func TestMain(m *testing.M) {
	path := os.Getenv(writeEnv)
	switch {
	case IsChild():
		Main()
	case path != "":
		if err := write(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

func write(path string) error {
	f, err := os.Create(path)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 4096), 0)
	}
	return err
}

// begin starts the process that writes.
func begin(t *testing.T, d *Disk) (c *exec.Cmd, path string, ended <-chan error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "page")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := d.Under(lab.Spec{Path: self, Env: []string{writeEnv + "=" + path}})
	c = exec.Command(s.Path, s.Args...)
	c.Env, c.Stderr = append(os.Environ(), s.Env...), os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- c.Wait() }()
	return c, path, over
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return info.Size()
}

// TestDisk: a write completes when it may, is not done before, and does not keep
// its process from being killed.
func TestDisk(t *testing.T) {
	d, err := New(filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	_, path, ended := begin(t, d)
	if err := <-ended; err != nil || size(path) != 4096 {
		t.Fatalf("error %v, %d bytes", err, size(path))
	}
	d.Hold()
	_, path, ended = begin(t, d)
	killed, _, dead := begin(t, d)
	for size(path) < 0 { // not yet created
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-ended:
		t.Fatalf("the write completed: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if size(path) != 0 {
		t.Errorf("%d bytes are written", size(path))
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-dead; err == nil {
		t.Error("the process was not killed")
	}
	d.Release()
	if err := <-ended; err != nil || size(path) != 4096 {
		t.Errorf("error %v, %d bytes", err, size(path))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
