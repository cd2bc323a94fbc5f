package apiserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/identity"
)

// rewriteJournal gives the first labels of a journal another number.
func (w *world) rewriteJournal(path string) {
	data, err := os.ReadFile(path)
	w.must(err)
	entries, _ := identity.Decode(data)
	if len(entries) != 1 || !strings.Contains(entries[0].Labels, "k8s:app=web;") {
		w.Fatalf("journal %v", entries)
	}
	entries[0].Number = 458799
	w.must(os.WriteFile(path, identity.Encode(entries), 0o600))
}

func open(t *testing.T, dir string) (*journal, *identity.Table, int) {
	t.Helper()
	table := identity.New(identity.Config{First: 458753, Last: 524287, Quarantine: 60})
	j, bad, err := openJournal(dir, table, 1000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.close() }) //nolint:errcheck // every append was synced
	return j, table, bad
}

func TestJournalKeepsNumbers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identities")
	j, table, _ := open(t, dir)
	table.Acquire("k8s:app=a;")
	number, _ := table.Acquire("k8s:app=b;")
	if err := j.append(table.TakeChanges(), table); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "journal")
	torn, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := torn.WriteString("12345678 4587"); err != nil {
		t.Fatal(err)
	}
	torn.Close() //nolint:errcheck // the next read would notice
	_, again, bad := open(t, dir)
	if bad != 1 || again.Stats().Resting != 2 {
		t.Errorf("%d bad lines, %+v", bad, again.Stats())
	}
	if got, _ := again.Acquire("k8s:app=b;"); got != number {
		t.Errorf("number %d, want %d", got, number)
	}
	if data, err := os.ReadFile(file); err != nil || bytes.Contains(data, []byte("12345678")) {
		t.Errorf("the torn line is still there: %v", err)
	}
}

// After a failed write the whole file is written anew.
func TestJournalRecoversFromFailedWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identities")
	j, table, _ := open(t, dir)
	number, _ := table.Acquire("k8s:app=a;")
	j.file.Close() //nolint:errcheck // that is the fault
	if err := j.append(table.TakeChanges(), table); err == nil {
		t.Fatal("a write to a closed file succeeded")
	}
	table.Acquire("k8s:app=b;")
	if err := j.append(table.TakeChanges(), table); err != nil {
		t.Fatal(err)
	}
	_, again, bad := open(t, dir)
	if got, _ := again.Acquire("k8s:app=a;"); bad != 0 || got != number || again.Stats().Resting != 1 {
		t.Errorf("number %d, want %d, %d bad lines, %+v", got, number, bad, again.Stats())
	}
}

func TestJournalWithoutDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := openJournal(filepath.Join(file, "identities"), identity.New(identity.Config{First: 1, Last: 2}), 0)
	if err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("error %v", err)
	}
}
