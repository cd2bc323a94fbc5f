package conformance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestEveryCheckHasACause, and there is no cause of a check that does not exist.
func TestEveryCheckHasACause(t *testing.T) {
	all := causes()
	known := map[string]bool{"mesh-ids": true, "mesh-pod-ranges": true}
	for _, c := range Checks() {
		known[c.ID] = true
		if all[c.ID] == "" {
			t.Errorf("%s has no cause", c.ID)
		}
	}
	for id := range all {
		if !known[id] {
			t.Errorf("there is no check %s", id)
		}
	}
}

func TestCausesOfNoConnection(t *testing.T) {
	for _, c := range []struct {
		err     error
		explain func(finding, error) finding
		want    string
	}{
		{syscall.ECONNREFUSED, noConnection, "port closed"},
		{context.DeadlineExceeded, noConnection, "no answer"},
		{syscall.EHOSTUNREACH, noConnection, "no route"},
		{errors.New("else"), noConnection, ""},
		{context.DeadlineExceeded, noHandshake, "half-open"},
		{io.EOF, noHandshake, "closed again before TLS"},
		{syscall.ECONNRESET, noHandshake, "closed again before TLS"},
		{errors.New("tls: first record does not look like a TLS handshake"), noHandshake, "another service"},
		{errors.New("else"), noHandshake, ""},
	} {
		f := c.explain(fail("x"), fmt.Errorf("dial: %w", c.err))
		if !strings.Contains(f.cause, c.want) || (f.cause == "") != (c.want == "") {
			t.Errorf("%v: cause %q, want %q", c.err, f.cause, c.want)
		}
	}
}

func TestTogether(t *testing.T) {
	seen := func(cluster string, id uint32, ranges ...string) Seen {
		s := Seen{Cluster: cluster, ID: id}
		for _, r := range ranges {
			s.PodRanges = append(s.PodRanges, netip.MustParsePrefix(r))
		}
		return s
	}
	for name, c := range map[string]struct {
		seen []Seen
		want []string
	}{
		"none":            {nil, nil},
		"apart":           {[]Seen{seen("east", 1, "10.1.0.0/24", "fd00::/64"), seen("west", 2, "10.2.0.0/24", "fd00:1::/64")}, nil},
		"two endpoints":   {[]Seen{seen("east", 1, "10.1.0.0/24"), seen("east", 1, "10.1.0.0/24")}, nil},
		"unread ids":      {[]Seen{seen("east", 0), seen("west", 0)}, nil},
		"same id":         {[]Seen{seen("east", 1), seen("west", 1)}, []string{"east and west have id 1"}},
		"same range":      {[]Seen{seen("east", 1, "10.1.0.0/24"), seen("west", 2, "10.1.0.0/24")}, []string{"10.1.0.0/24 of east and 10.1.0.0/24 of west"}},
		"one holds other": {[]Seen{seen("east", 1, "10.0.0.0/8"), seen("west", 2, "10.7.0.0/24", "10.8.0.0/24")}, []string{"10.0.0.0/8 of east and 10.7.0.0/24 of west"}},
		"between its own": {[]Seen{seen("east", 1, "10.0.0.0/8", "10.7.0.0/16", "10.9.0.0/16"), seen("west", 2, "10.8.0.0/24")}, []string{"10.0.0.0/8 of east and 10.8.0.0/24 of west"}},
		"three": {[]Seen{seen("east", 1, "10.0.0.0/8"), seen("north", 1, "10.1.0.0/16"), seen("west", 2, "10.1.1.0/24")}, []string{
			"east and north have id 1", "10.0.0.0/8 of east and 10.1.0.0/16 of north", "10.0.0.0/8 of east and 10.1.1.0/24 of west", "10.1.0.0/16 of north and 10.1.1.0/24 of west",
		}},
	} {
		var got []string
		for _, r := range Together(c.seen) {
			if r.Outcome == Fail {
				got = append(got, r.Evidence)
				if r.Cause == "" || r.Remedy == "" || r.Check.Why == "" {
					t.Errorf("%s: %+v", name, r)
				}
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestCausesOfAnOldHeartbeat(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		beat, end time.Duration // from now
		clocks    bool
	}{
		{-time.Hour, time.Hour, false},
		{-time.Hour, -time.Minute, true},
		{-time.Hour, -2 * time.Hour, false}, // it was written after the end
	} {
		f := late(fail("old"), now.Add(c.beat), -c.beat, &x509.Certificate{NotAfter: now.Add(c.end)})
		if strings.Contains(f.cause, "clocks disagree") != c.clocks || (f.remedy != "") != c.clocks {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}
