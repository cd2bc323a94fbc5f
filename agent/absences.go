package agent

import (
	"iter"
	"slices"
	"time"
)

// absences are the names of files that are missing, since when. A file that is
// replaced in two steps is missing for a moment and must not count as removed.
type absences map[string]time.Time

// over returns, sorted, the known names that have been missing for longer than
// [removalGrace], and forgets them. recheck is when to ask again at the latest,
// or 0.
func (a absences) over(known iter.Seq[string], present map[string]bool, now time.Time) (removed []string, recheck time.Duration) {
	for name := range known {
		if present[name] {
			delete(a, name)
			continue
		}
		since, ok := a[name]
		if !ok {
			a[name], since = now, now
		}
		if left := removalGrace - now.Sub(since); left > 0 {
			recheck = max(recheck, left)
			continue
		}
		delete(a, name)
		removed = append(removed, name)
	}
	slices.Sort(removed)
	return removed, recheck
}
