package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// Phase is how far the replacement of a CA has come.
type Phase string

// The phases of a rotation. In every one of them ca.crt holds all CAs that peers
// must believe, and ca.key is the key of the one that issues.
const (
	Steady    Phase = "steady"    // one CA
	Prepared  Phase = "prepared"  // the next CA is in ca.crt and does not issue yet
	Activated Phase = "activated" // the next CA issues; the old one is still in ca.crt
)

// DefaultOverlap is how long a prepared CA must have been in ca.crt before it
// may issue: time for ca.crt to reach the peers. SPIFFE's rule is three to five
// refresh periods, and five minutes is the usual one.
const DefaultOverlap = 15 * time.Minute

const (
	nextBase = "ca-next"
	oldBase  = "ca-old"
)

// Rotation is the state of a CA directory.
type Rotation struct {
	Phase  Phase `json:"phase"`
	Active Info  `json:"active"`         // the CA that issues
	Next   *Info `json:"next,omitempty"` // when prepared
	Old    *Info `json:"old,omitempty"`  // when activated
	// Waiting are the certificates of the old CA that are valid and not revoked:
	// RetireCA refuses while there is one.
	Waiting []Waiting `json:"waiting,omitempty"`
}

// Waiting is a certificate that keeps an old CA from being retired.
type Waiting struct {
	Issued
	// Replaced says that the new CA has issued a certificate of the same name,
	// so that this one is out of use if everybody took up the new one.
	Replaced bool `json:"replaced"`
}

// RotateOptions are the choices of one step of a rotation.
type RotateOptions struct {
	// CA describes the new CA, for PrepareCA; an empty name keeps the old one's.
	CA CAOptions
	// Overlap is how long ago PrepareCA must have been for ActivateCA.
	// DefaultOverlap when zero.
	Overlap time.Duration
	// Force skips the waiting of ActivateCA and the refusal of RetireCA.
	Force bool
}

// RotationOf reads the state of the rotation in dir.
func RotationOf(dir string) (Rotation, error) {
	r, err := readRotation(dir)
	if err != nil {
		return Rotation{}, fmt.Errorf("read state of rotation: %w", err)
	}
	return r.describe(time.Now())
}

// rotation is the CAs of a directory. next and old have no certificate when
// there is none.
type rotation struct {
	dir               string
	bundle            []*x509.Certificate
	active, next, old issuer
}

func readRotation(dir string) (r rotation, err error) {
	r.dir = dir
	if r.bundle, err = readCerts(r.path(caCertFile)); err != nil {
		return r, err
	}
	if r.active, err = pairIssuer(r.path(caCertFile), r.path(caKeyFile)); err != nil {
		return r, err
	}
	if r.next, err = r.optional(nextBase); err != nil {
		return r, err
	}
	r.old, err = r.optional(oldBase)
	return r, err
}

// optional reads a pair that a rotation left, if it did. A key that belongs to
// the active CA is the remainder of a step that was interrupted.
func (r rotation) optional(base string) (issuer, error) {
	ca, err := pairIssuer(r.path(base+".crt"), r.path(base+".key"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && ca.cert.Equal(r.active.cert) {
		return issuer{}, nil
	}
	return ca, err
}

func (r rotation) path(name string) string { return filepath.Join(r.dir, name) }

func (r rotation) phase() Phase {
	switch {
	case r.next.cert != nil && r.holds(r.next.cert):
		return Prepared
	case r.old.cert != nil:
		return Activated
	}
	return Steady
}

func (r rotation) holds(c *x509.Certificate) bool { return slices.ContainsFunc(r.bundle, c.Equal) }

// issuers are the CAs that can sign a revocation list.
func (r rotation) issuers() []issuer {
	out := []issuer{r.active}
	for _, ca := range []issuer{r.next, r.old} {
		if ca.cert != nil && r.holds(ca.cert) {
			out = append(out, ca)
		}
	}
	return out
}

func (r rotation) describe(now time.Time) (Rotation, error) {
	file := r.path(caCertFile)
	out := Rotation{Phase: r.phase(), Active: describe(file, r.active.cert)}
	if out.Phase == Prepared {
		next := describe(file, r.next.cert)
		out.Next = &next
	}
	if out.Phase != Activated {
		return out, nil
	}
	old := describe(file, r.old.cert)
	out.Old = &old
	var err error
	out.Waiting, err = r.waiting(now)
	return out, err
}

// waiting lists what the old CA issued and is still in force.
func (r rotation) waiting(now time.Time) ([]Waiting, error) {
	list, err := issuedBy(r.dir, now)
	if err != nil {
		return nil, err
	}
	fresh := map[string]bool{}
	for _, i := range list {
		fresh[i.Name] = fresh[i.Name] || i.Issuer == keyID(r.active.cert)
	}
	var out []Waiting
	for _, i := range list {
		if i.Issuer == keyID(r.old.cert) && !i.Revoked {
			out = append(out, Waiting{Issued: i, Replaced: fresh[i.Name]})
		}
	}
	return out, nil
}

// PrepareCA makes the CA that will replace the one in dir and adds it to ca.crt,
// which is to be handed to every peer before [ActivateCA]. Calling it again
// finishes a call that was interrupted and otherwise changes nothing.
func PrepareCA(dir string, opts RotateOptions) (Rotation, error) {
	return rotate(dir, "prepare rotation", func(r rotation, now time.Time) error {
		if r.old.cert != nil {
			return fmt.Errorf("the last rotation is not finished: run clustermesh certs rotate --dir %s retire first", dir)
		}
		if r.next.cert == nil {
			if err := r.makeNext(opts.CA); err != nil {
				return err
			}
		}
		next, err := pairIssuer(r.path(nextBase+".crt"), r.path(nextBase+".key"))
		if err != nil || r.holds(next.cert) {
			return err
		}
		bundle := append(slices.Clone(r.bundle), next.cert)
		return disk.Replace(r.path(caCertFile), disk.CertMode, encodeCerts(bundle))
	})
}

func (r rotation) makeNext(opts CAOptions) error {
	if opts.Validity < 0 {
		return fmt.Errorf("validity %s is negative", opts.Validity)
	}
	if opts.Name == "" {
		opts.Name = r.active.cert.Subject.CommonName
	}
	cert, key, err := newCA(opts)
	if err != nil {
		return err
	}
	// A certificate that was left alone must not meet a key of another.
	if err := disk.Remove(r.path(nextBase + ".crt")); err != nil {
		return err
	}
	if err := disk.Replace(r.path(nextBase+".key"), disk.KeyMode, key); err != nil {
		return err
	}
	return disk.Replace(r.path(nextBase+".crt"), disk.CertMode, cert)
}

// ActivateCA lets the prepared CA issue from now on; ca.crt keeps both. It
// refuses when the overlap has not passed since PrepareCA. The switch is the
// replacement of ca.key, one step.
func ActivateCA(dir string, opts RotateOptions) (Rotation, error) {
	return rotate(dir, "activate rotation", func(r rotation, now time.Time) error {
		if r.phase() == Activated {
			return disk.Remove(r.path(nextBase+".crt"), r.path(nextBase+".key"))
		}
		if r.phase() != Prepared {
			return fmt.Errorf("no CA is prepared: run clustermesh certs rotate --dir %s prepare first", dir)
		}
		if err := errors.Join(checkIssuer(r.next.cert, now), r.checkOverlap(opts, now)); err != nil {
			return err
		}
		return r.change()
	})
}

func (r rotation) checkOverlap(opts RotateOptions, now time.Time) error {
	if opts.Overlap == 0 {
		opts.Overlap = DefaultOverlap
	}
	ready := r.next.cert.NotBefore.Add(clockTolerance + opts.Overlap)
	if opts.Force || !now.Before(ready) {
		return nil
	}
	return fmt.Errorf("the new CA has not been in ca.crt for %s yet; wait until %s, so that every peer has the new ca.crt, or use --force if they have", opts.Overlap, stamp(ready))
}

// change makes next the active CA. Its order lets it be interrupted anywhere.
func (r rotation) change() error {
	for _, step := range []struct {
		from, to string
		mode     fs.FileMode
	}{{caKeyFile, oldBase + ".key", disk.KeyMode}, {"", oldBase + ".crt", disk.CertMode}, {nextBase + ".key", caKeyFile, disk.KeyMode}} {
		data := encodeCert(r.active.cert.Raw)
		if step.from != "" {
			var err error
			if data, err = os.ReadFile(r.path(step.from)); err != nil {
				return err
			}
		}
		if err := disk.Replace(r.path(step.to), step.mode, data); err != nil {
			return err
		}
	}
	return disk.Remove(r.path(nextBase+".crt"), r.path(nextBase+".key"))
}

// RetireCA takes the old CA out of ca.crt. It refuses while a certificate that
// the old CA issued is valid and not revoked; Force overrules that.
func RetireCA(dir string, opts RotateOptions) (Rotation, error) {
	return rotate(dir, "retire CA", func(r rotation, now time.Time) error {
		if r.phase() != Activated {
			return fmt.Errorf("no old CA is left in %s: the rotation is in phase %s", dir, r.phase())
		}
		waiting, err := r.waiting(now)
		if err != nil {
			return err
		}
		if len(waiting) > 0 && !opts.Force {
			return refuseRetire(dir, waiting)
		}
		r.bundle = slices.DeleteFunc(slices.Clone(r.bundle), r.old.cert.Equal)
		if err := disk.Replace(r.path(caCertFile), disk.CertMode, encodeCerts(r.bundle)); err != nil {
			return err
		}
		// While ca-old.crt is there it is known whose list goes.
		if err := r.refreshCRL(now); err != nil {
			return err
		}
		return disk.Remove(r.path(oldBase+".crt"), r.path(oldBase+".key"))
	})
}

func refuseRetire(dir string, waiting []Waiting) error {
	var names []string
	last, unreplaced := time.Time{}, 0
	for _, w := range waiting {
		if w.NotAfter.After(last) {
			last = w.NotAfter
		}
		if !w.Replaced {
			unreplaced++
			names = append(names, w.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	detail := "all of them have been replaced: once everybody uses the new ones, --force is safe"
	if unreplaced > 0 {
		detail = fmt.Sprintf("not replaced yet: %s; run clustermesh certs renew --dir %s, and hand new certificates to the others", strings.Join(names[:min(len(names), 10)], ", "), dir)
	}
	return fmt.Errorf("%d %s, the last until %s; %s; revoked ones do not count",
		len(waiting), english.PluralWord(len(waiting), "certificate of the old CA is valid", "certificates of the old CA are valid"), stamp(last), detail)
}

// rotate runs one step and returns the state after it.
func rotate(dir, what string, step func(rotation, time.Time) error) (out Rotation, err error) {
	err = withDir(dir, func(now time.Time) error {
		r, err := readRotation(dir)
		if err != nil {
			return err
		}
		if err := step(r, now); err != nil {
			return err
		}
		if r, err = readRotation(dir); err != nil {
			return err
		}
		if err := r.refreshCRL(now); err != nil {
			return err
		}
		out, err = r.describe(now)
		return err
	})
	if err != nil {
		return Rotation{}, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}
