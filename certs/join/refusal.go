package join

import "fmt"

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
}

func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Text }

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Text: fmt.Sprintf(format, args...)}
}
