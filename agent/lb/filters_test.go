package lb

import (
	"slices"
	"testing"
)

// TestEveryReasonHasAFilter: who is used passed all, who is not failed one, and
// each reason says something of its own.
func TestEveryReasonHasAFilter(t *testing.T) {
	texts := map[string]string{}
	for f := byActive; f <= byDuplicate; f++ {
		reason := f.reason()
		filter, text := DroppedBy(reason)
		if Selecting(reason) != (filter == "") || filter != "" && !slices.Contains(Filters(), filter) || filter == FilterPort {
			t.Errorf("%s is dropped by %q", reason, filter)
		}
		if other := texts[text]; other != "" || text == "" {
			t.Errorf("%s and %s have the same text %q", reason, other, text)
		}
		texts[text] = reason
	}
	if filter, _ := DroppedBy("no-frontend"); filter != FilterPort {
		t.Errorf("no-frontend is dropped by %q", filter)
	}
}
