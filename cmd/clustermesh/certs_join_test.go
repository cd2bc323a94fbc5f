package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/join"
)

// TestJoinScripts runs both sides of a join as commands.
func TestJoinScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/join", Cmds: map[string]func(*testscript.TestScript, bool, []string){
		"mode":     checkMode,
		"exits":    checkExit,
		"address":  freeAddress,
		"answers":  waitAnswer,
		"replace":  replaceText,
		"readinto": readInto,
		"expired":  waitExpired,
		"idof":     idOf,
		"clock":    checkClock,
	}})
}

// freeAddress is "address NAME": a loopback address that nobody listens at.
func freeAddress(ts *testscript.TestScript, _ bool, args []string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], ln.Addr().String())
	ts.Check(ln.Close())
}

// waitAnswer is "answers ADDRESS": wait until somebody listens there.
func waitAnswer(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		c, err := net.DialTimeout("tcp", args[0], time.Second)
		if err == nil {
			ts.Check(c.Close())
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("nobody listens at %s: %v", args[0], err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// readInto is "readinto NAME FILE": the file's text as a variable, once there is
// a line in it.
func readInto(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		text := ts.ReadFile(args[1])
		if strings.HasSuffix(text, "\n") {
			ts.Setenv(args[0], strings.TrimSpace(text))
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s stays empty", args[1])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// waitExpired is "expired TOKEN": wait until the token is.
func waitExpired(ts *testscript.TestScript, _ bool, args []string) {
	i, err := join.ParseToken(args[0])
	ts.Check(err)
	time.Sleep(time.Until(i.Expires.Add(time.Millisecond)))
}

// idOf is "idof TEXT FILE": ID is the first word of the line with TEXT.
func idOf(ts *testscript.TestScript, _ bool, args []string) {
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		if strings.Contains(line, args[0]) {
			ts.Setenv("ID", strings.Fields(line)[0])
			return
		}
	}
	ts.Fatalf("no line with %q in %s", args[0], args[1])
}

// replaceText is "replace FROM TO FILE": exchange text in a file, which must be
// there.
func replaceText(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[2])
	if !strings.Contains(text, args[0]) {
		ts.Fatalf("%s does not contain %q", args[2], args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(strings.ReplaceAll(text, args[0], args[1])), 0o600))
}

// checkClock is "clock start" and then "clock 5s": no more time has passed on a
// machine that has nothing else to do, as in a campaign; elsewhere twelve times that.
func checkClock(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "start" {
		ts.Setenv("CLOCK", time.Now().Format(time.RFC3339Nano))
		return
	}
	start, err := time.Parse(time.RFC3339Nano, ts.Getenv("CLOCK"))
	ts.Check(err)
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	if os.Getenv("CLUSTERMESH_CAMPAIGN") == "" {
		limit *= 12
	}
	took := time.Since(start)
	ts.Logf("took %s of %s", took.Round(time.Millisecond), limit)
	if took > limit {
		ts.Fatalf("took %s, want at most %s", took, limit)
	}
}

// TestInvitationThatWasUsedIsNoneThatNobodyUsed: who used it has a certificate.
func TestInvitationThatWasUsedIsNoneThatNobodyUsed(t *testing.T) {
	site := func(name string, id uint32) join.Site {
		s := join.Site{Dir: filepath.Join(t.TempDir(), name), Cluster: name, ID: id, Endpoints: []string{"https://192.0.2.1:2379"}}
		if err := certs.InitCA(s.Dir, certs.CAOptions{}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	east, west := site("east", 1), site("west", 2)
	i, err := east.Invite("192.0.2.1:2380", join.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for expired, want := range map[bool]string{true: "the invitation expired before it was used", false: "stopped before the invitation was used"} {
		if err := unfinished(east, i, expired); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expired %v: %v", expired, err)
		}
	}
	request, err := west.Request(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := east.Redeem(i.Secret, request, nil); err != nil {
		t.Fatal(err)
	}
	for _, expired := range []bool{true, false} {
		err := unfinished(east, i, expired)
		for _, want := range []string{"used by west, not confirmed", "clustermesh disconnect west --dir " + east.Dir} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("expired %v: %v, want %q", expired, err, want)
			}
		}
	}
}
