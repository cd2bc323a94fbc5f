package join

import (
	"fmt"
	"strings"
	"unicode"
)

// Reason says in one word why something was refused; it is a label of metrics.
type Reason string

// The reasons.
const (
	Unknown    Reason = "unknown"     // no such invitation, or no such exchange
	Used       Reason = "used"        // the invitation has been used
	Expired    Reason = "expired"     // invitation or request is too old
	Replayed   Reason = "replayed"    // the very same message was taken before
	BadRequest Reason = "bad-request" // the message is not what it should be
	NameTaken  Reason = "name-taken"  // another cluster has the name
	IDTaken    Reason = "id-taken"    // another cluster has the id
	NotInvited Reason = "not-invited" // the invitation is for another cluster
)

// Refusal is the error for a message that is refused for what it is.
type Refusal struct {
	Reason Reason `json:"reason"`
	Text   string `json:"text"` // for people: what is wrong and what to do
	here   string // the same for people of this side alone; it is not sent
}

func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Text + r.here }

// locally adds what is nobody else's business, such as where files are and who
// else is a peer.
func (r *Refusal) locally(format string, args ...any) *Refusal {
	r.here = "; " + fmt.Sprintf(format, args...)
	return r
}

const maxRefusal = 1000 // bytes of a text that the other side sent

// received makes a refusal of the other side one that a terminal can show: it may
// not move the cursor, or be longer than somebody reads.
func (r *Refusal) received() *Refusal {
	return &Refusal{Reason: Reason(shown(string(r.Reason), 40)), Text: shown(r.Text, maxRefusal)}
}

func shown(text string, limit int) string {
	text = text[:min(len(text), limit)]
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Text: fmt.Sprintf(format, args...)}
}
