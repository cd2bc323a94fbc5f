package join

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/kvstore/cost"
)

func newToken(t testing.TB) string {
	t.Helper()
	i, err := NewInvitation("mesh.example.com:2380", Fingerprint{1, 2, 3}, Secret{4, 5, 6}, time.Unix(1900000000, 0))
	if err != nil {
		t.Fatal(err)
	}
	return i.Token()
}

func TestTokenSaysWhatTheInvitationSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ca Fingerprint
		var secret Secret
		copy(ca[:], rapid.SliceOfN(rapid.Byte(), len(ca), len(ca)).Draw(t, "ca"))
		copy(secret[:], rapid.SliceOfN(rapid.Byte(), len(secret), len(secret)).Draw(t, "secret"))
		endpoint := rapid.StringMatching(`[a-z0-9]{1,20}(\.[a-z0-9]{1,20}){0,3}|\[2001:db8::[1-9a-f]{1,4}\]`).Draw(t, "host") + ":" + fmt.Sprint(rapid.IntRange(1, 65535).Draw(t, "port"))
		want, err := NewInvitation(endpoint, ca, secret, time.Unix(rapid.Int64Range(1, maxExpiry).Draw(t, "expires"), 0))
		if err != nil {
			t.Skip(err)
		}
		token := want.Token()
		wrapped := "  " + strings.ToUpper(token[:20]) + "\r\n\t" + token[20:] + "\n"
		for _, text := range []string{token, wrapped} {
			if got, err := ParseToken(text); err != nil || got != want {
				t.Fatalf("read %q as %+v, %v; want %+v", text, got, err, want)
			}
		}
	})
}

// TestEveryTypoIsNamed changes each character in turn.
func TestEveryTypoIsNamed(t *testing.T) {
	token := newToken(t)
	for at := len(tokenPrefix); at < len(token); at++ {
		other := byte('a')
		if token[at] == other {
			other = 'b'
		}
		_, err := ParseToken(token[:at] + string(other) + token[at+1:])
		if want := fmt.Sprintf("character %d ", at+1); err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "cut off") {
			t.Errorf("character %d changed: %v", at+1, err)
		}
	}
	for n := range len(token) {
		if _, err := ParseToken(token[:n]); err == nil {
			t.Errorf("cut to %d characters it was taken", n)
		}
	}
}

func TestBrokenTokensAreExplained(t *testing.T) {
	token := newToken(t)
	at := 60
	for token[at] == token[at+1] {
		at++
	}
	swapped := token[:at] + token[at+1:at+2] + token[at:at+1] + token[at+2:]
	for name, row := range map[string]struct{ text, says string }{
		"empty":         {"", "does not begin with cmjoin1-"},
		"another thing": {"eyJhbGciOiJSUzI1NiJ9", "copy it whole from the output of: clustermesh invite"},
		"newer version": {strings.Replace(token, "cmjoin1-", "cmjoin2-", 1), `version "2"`},
		"cut off":       {token[:len(token)-1], "cut off"},
		"cut very off":  {token[:30], "cut off"},
		"twice":         {token + token, "cannot be in a token"},
		"more":          {token + "aa", "mistyped or changed"},
		"one is one":    {token[:50] + "1" + token[51:], "character 51 ('1') cannot be"},
		"two swapped":   {swapped, "checksum"},
		"endless":       {strings.Repeat(token, 20), "more than 1024"},
	} {
		if _, err := ParseToken(row.text); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: error %v, want one with %q", name, err, row.says)
		}
	}
}

func TestInvitationRefusesWhatCannotBeReached(t *testing.T) {
	for _, endpoint := range []string{"", "east", "east:0", "east:65536", "east:x", "east:+80", ":2380", "https://east:2380", "ea st:1", "east:2380/x", strings.Repeat("a.", 200) + "b:1"} {
		if _, err := NewInvitation(endpoint, Fingerprint{}, Secret{}, time.Unix(1, 0)); err == nil {
			t.Errorf("endpoint %q was taken", endpoint)
		}
	}
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Unix(maxExpiry+1, 0)} {
		if _, err := NewInvitation("east:1", Fingerprint{}, Secret{}, at); err == nil {
			t.Errorf("expiry %s was taken", at)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	token := newToken(f)
	for _, seed := range []string{token, token[:40], token + "a", strings.ToUpper(token), "cmjoin1-", "cmjoin9-x", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var i Invitation
		var err error
		cost.Bounded(t, len(text), 0, func() { i, err = ParseToken(text) })
		if err != nil {
			return
		}
		if want := strings.ToLower(strings.Join(strings.Fields(text), "")); i.Token() != want {
			t.Errorf("%q was read as %+v, whose token is %q", text, i, i.Token())
		}
	})
}
