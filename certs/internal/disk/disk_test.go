package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReplaceAndCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	must(t, Ensure(dir))
	path := filepath.Join(dir, "file")
	must(t, Create(path, KeyMode, []byte("one")))
	if err := Create(path, KeyMode, []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	must(t, Replace(path, CertMode, []byte("three")))
	data, err := os.ReadFile(path)
	must(t, err)
	st, err := os.Stat(path)
	must(t, err)
	if string(data) != "three" || st.Mode().Perm() != CertMode {
		t.Errorf("holds %q with mode %s", data, st.Mode())
	}
	if err := Replace(filepath.Join(dir, "no", "file"), KeyMode, nil); err == nil {
		t.Error("wrote into a directory that does not exist")
	}
	must(t, Remove(path, path))
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestEnsureRefusesWhatOthersMayWriteTo(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o770))
	if Ensure(dir) == nil {
		t.Error("a directory that the group may write to was taken")
	}
}

func TestLockIsForOneAtATime(t *testing.T) {
	dir := t.TempDir()
	var held, most atomic.Int32
	done := make(chan struct{})
	for range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			for range 50 {
				unlock, err := Lock(dir)
				if err != nil {
					t.Error(err)
					return
				}
				if n := held.Add(1); n > 1 {
					most.Store(n)
				}
				held.Add(-1)
				unlock()
			}
		}()
	}
	for range 8 {
		<-done
	}
	if n := most.Load(); n != 0 {
		t.Errorf("%d held the lock at once", n)
	}
	if _, err := Lock(filepath.Join(dir, "missing")); err == nil {
		t.Error("locked a directory that does not exist")
	}
}

// TestEnsureRefusesWhatIsAnothersDirectory: its owner can change it, whatever its
// mode says. CI runs as root, where this is not skipped.
func TestEnsureRefusesWhatIsAnothersDirectory(t *testing.T) {
	for _, row := range []struct {
		owner, user int
		sudo        string
		want        bool
	}{
		{0, 0, "", false}, {0, 1000, "", false}, {1000, 1000, "", false}, {1000, 0, "", true}, {1001, 1000, "", true},
		{1000, 0, "1000", false}, {1001, 0, "1000", true}, {1001, 1000, "1001", true}, {1000, 0, "1000x", true},
	} {
		if got := foreign(row.owner, row.user, row.sudo); got != row.want {
			t.Errorf("a directory of user %d is foreign to user %d, who was %q: %v", row.owner, row.user, row.sudo, got)
		}
	}
	t.Setenv("SUDO_UID", "")
	dir := filepath.Join(t.TempDir(), "pki")
	must(t, Ensure(dir))
	must(t, Ensure(dir))
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	must(t, os.Chown(dir, 12345, -1))
	// To take the directory from its user would keep him from what is his work.
	if err := Ensure(dir); err == nil || !strings.Contains(err.Error(), "sudo -u '#12345' clustermesh") || strings.Contains(err.Error(), "chown") {
		t.Errorf("a directory of another user was taken, or its remedy does harm: %v", err)
	}
	t.Setenv("SUDO_UID", "12345")
	must(t, Ensure(dir))
}

// TestLockFollowsNoLink: who may write to the directory for a moment must not
// make this process create or hold a file elsewhere.
func TestLockFollowsNoLink(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "file")
	must(t, os.Symlink(elsewhere, filepath.Join(dir, ".lock")))
	if unlock, err := Lock(dir); err == nil {
		unlock()
		t.Error("a lock that is a link was taken")
	}
	if _, err := os.Lstat(elsewhere); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link's target was made: %v", err)
	}
}
