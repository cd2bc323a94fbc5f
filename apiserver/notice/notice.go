// Package notice decides what the owner of a service is told about its export,
// and when: once per change, not once per computation. It is pure; the
// apiserver turns its notices into Kubernetes Events.
package notice

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize/english"

	"github.com/clustermesh/clustermesh/apiserver/export"
)

// Reason is a notice's machine-readable cause, as Events spell it. Besides the
// constants there is one for each [export.Reason].
type Reason string

// The reasons that are not export's.
const (
	Exported           Reason = "Exported"           // other clusters are offered the service's backends
	Withdrawn          Reason = "Withdrawn"          // they no longer are
	NamespaceNotGlobal Reason = "NamespaceNotGlobal" // the service says that it is global, its namespace that it is not
	NotGlobal          Reason = "NotGlobal"          // annotations without the one that makes a service global
	NobodyImports      Reason = "NobodyImports"      // it is exported, and no other cluster reads
)

// Reasons lists every reason that a notice can have, sorted.
func Reasons() []Reason {
	all := []Reason{Exported, Withdrawn, NamespaceNotGlobal, NotGlobal, NobodyImports}
	for _, r := range export.Reasons() {
		all = append(all, reasonOf(r))
	}
	slices.Sort(all)
	return all
}

// reasonOf spells port-conflict as PortConflict.
func reasonOf(r export.Reason) Reason {
	var b strings.Builder
	for word := range strings.SplitSeq(string(r), "-") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return Reason(b.String())
}

// Notice is one thing to tell the owner of a service.
type Notice struct {
	Namespace, Name, UID string

	Reason  Reason
	Warning bool // something is to be done
	Message string
}

// atOnce bounds how many services are told at a time that nobody imports them.
const atOnce = 50

// Book remembers what is known of services, so that only changes are told. The
// zero value is not usable; take [NewBook].
type Book struct {
	cluster string
	after   int64
	known   map[[2]string]*entry
	alone   int64 // no other cluster reads since then, in seconds; 0 while one does or it is not known
}

type entry struct {
	uid      string
	exported bool
	hidden   bool
	idle     bool
	since    int64 // exported, in seconds
	lonely   bool  // was told that nobody imports it
	problems []export.Problem
}

// NewBook returns a book of a cluster's services. After so many seconds without
// a reader of another cluster owners are told; 0 is never.
func NewBook(cluster string, after int64) *Book {
	return &Book{cluster: cluster, after: after, known: map[[2]string]*entry{}}
}

// See takes in the states of services at a time in seconds and returns what is
// to be told. In the first look at a cluster, quiet leaves out what was
// exported before this process began.
func (b *Book) See(states []export.ServiceState, now int64, quiet bool) []Notice {
	var out []Notice
	for _, s := range states {
		out = append(out, b.see(s, now, quiet)...)
	}
	return out
}

func (b *Book) see(s export.ServiceState, now int64, quiet bool) (out []Notice) {
	key := [2]string{s.Namespace, s.Name}
	old := b.known[key]
	if old == nil || old.uid != s.UID {
		old = &entry{}
	}
	next := &entry{
		uid: s.UID, exported: s.Exported, hidden: s.Hidden, idle: len(s.Idle) > 0,
		since: old.since, lonely: old.lonely && s.Exported, problems: s.Problems,
	}
	if next.exported && !old.exported {
		next.since = now
	}
	if s.Gone || !next.exported && !next.hidden && !next.idle && len(next.problems) == 0 {
		delete(b.known, key)
	} else {
		b.known[key] = next
	}
	if s.Gone {
		return nil
	}
	return b.changes(s, old, next, quiet)
}

// changes says what is different.
func (b *Book) changes(s export.ServiceState, old, next *entry, quiet bool) (out []Notice) {
	tell := func(reason Reason, warning bool, message string) {
		out = append(out, Notice{Namespace: s.Namespace, Name: s.Name, UID: s.UID, Reason: reason, Warning: warning, Message: message})
	}
	switch {
	case next.exported && !old.exported && !quiet:
		tell(Exported, false, fmt.Sprintf("Offered to other clusters as a service of cluster %s", b.cluster))
	case !next.exported && old.exported:
		tell(Withdrawn, false, "No longer offered to other clusters")
	}
	if next.hidden && !old.hidden {
		tell(NamespaceNotGlobal, true, fmt.Sprintf(`Not global, because namespace %s is not; annotate it with clustermesh.cilium.io/global: "true"`, s.Namespace))
	}
	if next.idle && !old.idle {
		tell(NotGlobal, true, fmt.Sprintf(`Annotation %s has no effect without service.cilium.io/global: "true"`, strings.Join(s.Idle, " and ")))
	}
	for _, p := range next.problems {
		if !slices.Contains(old.problems, p) {
			tell(reasonOf(p.Reason), true, p.Message)
		}
	}
	return out
}

// Readers takes in, from time to time, whether a reader of another cluster is
// connected, and returns what is to be told of services that nobody imports.
// What is too much at once is told at the next calls.
func (b *Book) Readers(connected bool, now int64) []Notice {
	if connected || b.after == 0 {
		if b.alone != 0 {
			b.company()
		}
		return nil
	}
	if b.alone == 0 {
		b.alone = now
	}
	var due [][2]string
	for key, e := range b.known {
		if e.exported && !e.lonely && now-max(e.since, b.alone) >= b.after {
			due = append(due, key)
		}
	}
	slices.SortFunc(due, func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	var out []Notice
	for _, key := range due[:min(len(due), atOnce)] {
		e := b.known[key]
		e.lonely = true
		out = append(out, Notice{
			Namespace: key[0], Name: key[1], UID: e.uid, Reason: NobodyImports, Warning: true,
			Message: fmt.Sprintf("Exported, but no other cluster has been connected for %s", minutes(b.after)),
		})
	}
	return out
}

// company begins the wait anew: somebody reads.
func (b *Book) company() {
	b.alone = 0
	for _, e := range b.known {
		e.lonely = false
	}
}

func minutes(seconds int64) string {
	if seconds%60 == 0 {
		return english.Plural(int(seconds/60), "minute", "")
	}
	return english.Plural(int(seconds), "second", "")
}
