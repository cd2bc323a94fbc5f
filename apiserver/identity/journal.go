package identity

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
)

// Entry is one line of the journal: from here on the number belongs to the
// labels. Released is 0 while it is in use, otherwise the time of release.
type Entry struct {
	Number   uint32
	Released int64
	Labels   string
}

func entryOf(number uint32, s slot) Entry {
	return Entry{Number: number, Released: s.released, Labels: s.labels}
}

// TakeChanges returns the entries that arose since the last call, oldest
// first, for the caller to append to the journal.
func (t *Table) TakeChanges() []Entry {
	changes := t.changes
	t.changes = nil
	return changes
}

// Entries returns the whole table, sorted by number: what a compacted journal
// holds.
func (t *Table) Entries() []Entry {
	entries := make([]Entry, 0, len(t.slots))
	for number, s := range t.slots {
		entries = append(entries, entryOf(number, s))
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Number, b.Number) })
	return entries
}

// Restore fills an empty table from a journal; a later entry for a number or
// for labels replaces an earlier one. All numbers rest at first, those that
// were in use from now on, and come back with the next Acquire of their
// labels; so what vanished while the server was down is released by itself.
// Numbers outside the range are ignored.
func (t *Table) Restore(entries []Entry, now int64) {
	t.now = now
	for _, e := range entries {
		if e.Number >= t.config.First && e.Number <= t.config.Last && e.Labels != "" {
			t.restore(e)
		}
	}
	t.requeue()
	t.changes = nil
	t.Advance(now)
}

func (t *Table) restore(e Entry) {
	if old, ok := t.byLabels[e.Labels]; ok && old != e.Number {
		t.drop(old)
	}
	if _, ok := t.slots[e.Number]; ok {
		t.drop(e.Number)
	}
	released := e.Released
	if released == 0 || released > t.now {
		released = t.now
	}
	t.set(e.Number, slot{labels: e.Labels, released: released})
}

// requeue rebuilds the order of release after a restore.
func (t *Table) requeue() {
	t.resting = t.resting[:0]
	for number, s := range t.slots {
		t.resting = append(t.resting, rest{number, s.released})
	}
	slices.SortFunc(t.resting, func(a, b rest) int {
		return cmp.Or(cmp.Compare(a.released, b.released), cmp.Compare(a.number, b.number))
	})
}

// Encode returns the journal lines of entries: the CRC-32 (IEEE) of the rest
// of the line, the number, the time of release, the quoted labels.
func Encode(entries []Entry) []byte {
	var out bytes.Buffer
	for _, e := range entries {
		line := fmt.Sprintf("%d %d %q", e.Number, e.Released, e.Labels)
		fmt.Fprintf(&out, "%08x %s\n", crc32.ChecksumIEEE([]byte(line)), line)
	}
	return out.Bytes()
}

// Decode reads journal lines. A line that is cut short or damaged is left out
// and counted in bad; the others are still good, since each stands for itself.
func Decode(data []byte) (entries []Entry, bad int) {
	for line := range bytes.Lines(data) {
		e, ok := decodeLine(string(line))
		if !ok {
			bad++
			continue
		}
		entries = append(entries, e)
	}
	return entries, bad
}

func decodeLine(line string) (Entry, bool) {
	line, whole := strings.CutSuffix(line, "\n")
	sum, rest, cut := strings.Cut(line, " ")
	want, err := strconv.ParseUint(sum, 16, 32)
	if !whole || !cut || err != nil || uint32(want) != crc32.ChecksumIEEE([]byte(rest)) {
		return Entry{}, false
	}
	return decodeFields(rest)
}

func decodeFields(rest string) (Entry, bool) {
	fields := strings.SplitN(rest, " ", 3)
	if len(fields) != 3 {
		return Entry{}, false
	}
	number, err1 := strconv.ParseUint(fields[0], 10, 32)
	released, err2 := strconv.ParseInt(fields[1], 10, 64)
	labels, err3 := strconv.Unquote(fields[2])
	ok := err1 == nil && err2 == nil && err3 == nil
	return Entry{Number: uint32(number), Released: released, Labels: labels}, ok
}
