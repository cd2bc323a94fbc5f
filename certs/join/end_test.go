package join

import (
	"strings"
	"testing"
	"time"
)

// TestConfirmationsEnd: an exchange that was begun cannot be completed for ever,
// whatever end its request gave itself.
func TestConfirmationsEnd(t *testing.T) {
	for name, row := range map[string]struct {
		life    time.Duration // of the request
		invited bool
		end     time.Duration
	}{
		"a request":                        {life: 2 * time.Hour, end: 2 * time.Hour},
		"a request that has no end":        {life: 20 * 365 * 24 * time.Hour, end: maxLife},
		"an invitation":                    {life: 2 * time.Hour, invited: true, end: InviteLife},
		"an invitation and a long request": {life: 20 * 365 * 24 * time.Hour, invited: true, end: InviteLife},
	} {
		west, east := newSide(t, "west", nil), newSide(t, "east", nil)
		request, err := west.Request(row.life)
		must(t, err)
		now := time.Now()
		var approval Approval
		if row.invited {
			approval, err = east.Redeem(invite(t, east.Site, "east:1", InviteOptions{}).Secret, request, nothing)
		} else {
			approval, err = east.Approve(request, nothing)
		}
		must(t, err)
		confirmation, err := west.AcceptApproval(approval, nothing)
		must(t, err)
		end := now.Add(row.end + confirmGrace)
		err = east.acceptConfirmation(*confirmation, end.Add(time.Minute), east.home.Install)
		wantReason(t, err, Expired)
		if err != nil && !strings.Contains(err.Error(), "clustermesh disconnect west") {
			t.Errorf("%s: error %v names no remedy", name, err)
		}
		if connects, admits := east.requireWhole(t, name, west); connects || admits {
			t.Errorf("%s: connects %v, admits %v", name, connects, admits)
		}
		if err := east.acceptConfirmation(*confirmation, end.Add(-time.Minute), east.home.Install); err != nil {
			t.Errorf("%s: in time: %v", name, err)
		}
		wantReason(t, east.acceptConfirmation(*confirmation, end.Add(time.Minute), east.home.Install), Replayed)
	}
}

// TestLeaveTakesWhatArrivesMeanwhile: a confirmation that comes in while the files
// are removed makes nobody a peer.
func TestLeaveTakesWhatArrivesMeanwhile(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, nothing)
	must(t, err)
	home, n := east.home, 0
	home.cut = func(point string) {
		if n++; n == len(home.paths("west")) && point == "removed" {
			must(t, east.AcceptConfirmation(*confirmation, east.home.Install))
		}
	}
	found, err := Leave(east.Dir, home, "west")
	must(t, err)
	if connects, admits := east.requireWhole(t, "left", west); connects || admits || !found || n == 0 {
		t.Errorf("found %v, then connects %v, admits %v", found, connects, admits)
	}
	if list, err := east.Peers(); err != nil || len(list) > 0 {
		t.Errorf("remembered %+v, error %v", list, err)
	}
}
