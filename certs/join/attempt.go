package join

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// attempt is one use of an invitation, on the side that joins. It is kept by the
// invitation's id, so that the same token goes on where it was cut off.
type attempt struct {
	site       Site
	invitation Invitation

	request      Request
	approval     *Approval     // nil: not received yet
	confirmation *Confirmation // nil: not made yet, or none is asked for
}

// attemptFile is what the file of an attempt says.
type attemptFile struct {
	Request string `json:"request"`
	Over    bool   `json:"over,omitempty"` // both sides have joined
}

func (t *attempt) path() string {
	return t.site.state(tokenPrefixOf + t.invitation.Secret.ID() + ".json")
}

// begin finds what is left of an earlier use of the invitation, or begins.
func (s Site) begin(i Invitation, now time.Time) (*attempt, error) {
	t := &attempt{site: s, invitation: i}
	err := s.locked(func() error {
		found, err := t.resume()
		if err != nil || found {
			return err
		}
		return t.fresh(now)
	})
	return t, err
}

func (t *attempt) resume() (bool, error) {
	var f attemptFile
	if found, err := read(t.path(), &f); err != nil || !found {
		return false, err
	}
	if f.Over {
		return false, refuse(Used, "this cluster has joined with this invitation; make a new invitation")
	}
	if found, err := read(t.site.state(sentPrefix+f.Request+".json"), &t.request); err != nil || !found {
		return false, err
	}
	done, err := t.site.finished(sentPrefix, f.Request)
	if err == nil {
		t.confirmation, err = done.Confirmation, disk.Remove(t.site.state(sentPrefix+f.Request+".key"))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	var a Approval
	found, err := read(t.site.state(sentPrefix+f.Request+".approval.json"), &a)
	if err != nil {
		return false, err
	}
	if found {
		t.approval = &a
		return true, nil
	}
	return t.same()
}

// same reports whether the request that waits says what a new one would.
func (t *attempt) same() (bool, error) {
	own, err := t.site.party()
	if err != nil || t.request.From.equal(own) {
		return err == nil, err
	}
	return false, t.site.Forget(t.request)
}

// read is readJSON for a file that may be missing.
func read(path string, into any) (bool, error) {
	err := readJSON(path, into)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (t *attempt) fresh(now time.Time) (err error) {
	if now.After(t.invitation.Expires) {
		return refuse(Expired, "the invitation ended at %s; ask for a new one", stamp(t.invitation.Expires))
	}
	var key []byte
	if t.request, key, err = t.site.request(t.invitation.Expires.Sub(now) + time.Minute); err != nil {
		return err
	}
	if err := t.write(false); err != nil {
		return err
	}
	t.site.reached("begun to join")
	err = t.site.keep(t.request, key)
	t.site.reached("requested")
	return err
}

func (t *attempt) write(over bool) error {
	return disk.Replace(t.path(), disk.KeyMode, Encode(attemptFile{Request: t.request.ID(), Over: over}))
}

// approve asks the acceptor, unless it has answered before. A request that the
// other side refused, or cannot have heard, is forgotten.
func (t *attempt) approve(ctx context.Context) error {
	if t.approval != nil {
		return nil
	}
	approval, err := t.ask(ctx)
	if err != nil {
		var refusal *Refusal
		var failed *callError
		if errors.As(err, &refusal) || errors.As(err, &failed) && !failed.sent {
			err = errors.Join(err, t.site.Forget(t.request), disk.Remove(t.path()))
		}
		return fmt.Errorf("join at %s: %w", t.invitation.Endpoint, err)
	}
	t.site.reached("heard")
	err = disk.Replace(t.site.state(sentPrefix+t.request.ID()+".approval.json"), disk.CertMode, Encode(approval))
	t.site.reached("kept")
	t.approval = approval
	return err
}

func (t *attempt) ask(ctx context.Context) (*Approval, error) {
	answer, err := t.invitation.call(ctx, pathJoin, Encode(t.request))
	if err != nil {
		return nil, err
	}
	approval, _, err := DecodeAnswer(answer)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it did not answer with an approval: %w", err)
	case approval == nil || approval.Request != t.request.ID():
		return nil, errors.New("it did not answer with an approval of this request")
	case !pinned(approval.From.CA, t.invitation.CA):
		return nil, errors.New("its CA bundle lacks the CA of the invitation")
	}
	return approval, nil
}

// end remembers that the invitation has done what it is for.
func (t *attempt) end() error {
	t.site.reached("delivered")
	return t.write(true)
}
