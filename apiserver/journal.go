package apiserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/clustermesh/clustermesh/apiserver/identity"
)

// compactAt is how many bytes may be appended to a journal before it is
// written anew without what is outdated.
const compactAt = 8 << 20

// journal keeps the assignments of identities in a file. It is not safe for
// concurrent use.
type journal struct {
	path     string
	file     *os.File
	appended int
}

// openJournal restores the table from the journal in dir, which it creates,
// and returns the journal for what comes. bad counts damaged lines.
func openJournal(dir string, table *identity.Table, now int64) (j *journal, bad int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, fmt.Errorf("create directory for identities: %w; check --data-dir", err)
	}
	j = &journal{path: filepath.Join(dir, "journal")}
	data, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("read journal of identities: %w; check --data-dir", err)
	}
	entries, bad := identity.Decode(data)
	table.Restore(entries, now)
	return j, bad, j.compact(table)
}

// compact replaces the file by one that holds just the table.
func (j *journal) compact(table *identity.Table) error {
	next, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write journal of identities: %w; check --data-dir", err)
	}
	if err := writeSynced(next, identity.Encode(table.Entries())); err != nil {
		return errors.Join(err, next.Close())
	}
	if err := os.Rename(j.path+".new", j.path); err != nil {
		return errors.Join(fmt.Errorf("write journal of identities: %w", err), next.Close())
	}
	err = j.close()
	j.file, j.appended = next, 0
	return err
}

func writeSynced(f *os.File, data []byte) error {
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write journal of identities: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write journal of identities to disk: %w", err)
	}
	return nil
}

// append writes entries to disk before it returns. A file that failed once is
// written anew as a whole next time, for its end is not known.
func (j *journal) append(entries []identity.Entry, table *identity.Table) error {
	if len(entries) == 0 {
		return nil
	}
	if j.file == nil || j.appended > compactAt {
		return j.compact(table)
	}
	data := identity.Encode(entries)
	if err := writeSynced(j.file, data); err != nil {
		return errors.Join(err, j.close())
	}
	j.appended += len(data)
	return nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	f := j.file
	j.file = nil
	if err := f.Close(); err != nil {
		return fmt.Errorf("close journal of identities: %w", err)
	}
	return nil
}
