package join

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

// Secret is what makes an invitation the bearer's: 128 random bits.
type Secret [16]byte

// NewSecret returns a new random secret.
func NewSecret() Secret {
	var s Secret
	rand.Read(s[:]) // never fails (crypto/rand)
	return s
}

// ID names the invitation of a secret and tells nothing about the secret.
func (s Secret) ID() string {
	sum := sha256.Sum256(append([]byte("clustermesh invitation id\x00"), s[:]...))
	return hex.EncodeToString(sum[:8])
}

// Fingerprint is the SHA-256 of a CA certificate's DER encoding.
type Fingerprint [sha256.Size]byte

// Invitation is what a token says.
type Invitation struct {
	Endpoint string      // host:port at which it is accepted
	CA       Fingerprint // of the CA that the acceptor's certificate comes from
	Secret   Secret
	Expires  time.Time // in whole seconds, UTC
}

// A token is tokenPrefix and, in lower-case base32 without padding, the payload
// and the first four bytes of its checksum. The payload is the expiry (8 bytes,
// seconds since 1970, big endian), the CA's fingerprint (32), the secret (16),
// the length of the endpoint (1) and the endpoint.
const (
	tokenName    = "cmjoin"
	tokenPrefix  = tokenName + "1-"
	fixedLength  = 8 + sha256.Size + len(Secret{}) + 1
	sumLength    = 4
	maxEndpoint  = 255
	maxTokenText = 1024
)

// The moments that a token can name, so that every one of them prints.
const maxExpiry = 253402300799 // 9999-12-31T23:59:59Z

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewInvitation puts an invitation together, after checking the endpoint.
func NewInvitation(endpoint string, ca Fingerprint, secret Secret, expires time.Time) (Invitation, error) {
	i := Invitation{Endpoint: endpoint, CA: ca, Secret: secret, Expires: expires.UTC().Truncate(time.Second)}
	if err := errors.Join(checkHostPort(endpoint), checkExpiry(i.Expires.Unix())); err != nil {
		return Invitation{}, fmt.Errorf("make invitation: %w", err)
	}
	return i, nil
}

func checkHostPort(endpoint string) error {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil || len(endpoint) > maxEndpoint {
		return fmt.Errorf("endpoint %q is not of the form host:port", endpoint)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("endpoint %q: the port is not a number from 1 to 65535", endpoint)
	}
	if err := certs.CheckHost(host); err != nil {
		return fmt.Errorf("endpoint %q: %w", endpoint, err)
	}
	return nil
}

func checkExpiry(seconds int64) error {
	if seconds <= 0 || seconds > maxExpiry {
		return fmt.Errorf("expiry %d is out of range", seconds)
	}
	return nil
}

// Token is the invitation as text, to be given to the one who is invited and to
// nobody else.
func (i Invitation) Token() string {
	p := binary.BigEndian.AppendUint64(nil, uint64(i.Expires.Unix()))
	p = append(p, i.CA[:]...)
	p = append(p, i.Secret[:]...)
	p = append(p, byte(len(i.Endpoint)))
	p = append(p, i.Endpoint...)
	return tokenPrefix + base32Lower.EncodeToString(append(p, checksum(p)...))
}

func checksum(payload []byte) []byte {
	sum := sha256.Sum256(append([]byte(tokenPrefix), payload...))
	return sum[:sumLength]
}

// ParseToken reads a token. White space in it, as line breaks leave it, and the
// case of its letters do not matter. The error says whether the token was cut
// off, mistyped (and where, for one wrong character) or made by another version.
// Whether it still works is for the acceptor to say.
func ParseToken(text string) (Invitation, error) {
	if len(text) > maxTokenText {
		return Invitation{}, fmt.Errorf("read token: it has more than %d characters; it is not a token", maxTokenText)
	}
	text = strings.ToLower(strings.Join(strings.Fields(text), ""))
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return Invitation{}, fmt.Errorf("read token: %w", foreign(text))
	}
	payload, err := decodeBody(body)
	if err != nil {
		return Invitation{}, fmt.Errorf("read token: %w", err)
	}
	i, err := decodePayload(payload)
	if err != nil {
		return Invitation{}, fmt.Errorf("read token: %w", err)
	}
	return i, nil
}

func foreign(text string) error {
	if rest, ok := strings.CutPrefix(text, tokenName); ok {
		if version, _, ok := strings.Cut(rest, "-"); ok {
			return fmt.Errorf("it is of version %.10q, this program reads version 1; use the same version on both sides", version)
		}
	}
	return fmt.Errorf("it does not begin with %s; copy it whole from the output of: clustermesh invite", tokenPrefix)
}

// decodeBody returns the payload once the checksum fits.
func decodeBody(body string) ([]byte, error) {
	if at := strings.IndexFunc(body, notBase32); at >= 0 {
		return nil, fmt.Errorf("character %d (%q) cannot be in a token; it was mistyped", len(tokenPrefix)+at+1, body[at])
	}
	raw, err := base32Lower.DecodeString(body)
	if want := lengthOf(raw); want == 0 || len(body) < base32Lower.EncodedLen(want) {
		return nil, errors.New("it was cut off, or mistyped where it says how long it is; copy it whole")
	}
	if err == nil && sumFits(raw) && base32Lower.EncodeToString(raw) == body {
		return raw[:len(raw)-sumLength], nil
	}
	if at := typo(body); at >= 0 {
		return nil, fmt.Errorf("character %d (%q) was mistyped", len(tokenPrefix)+at+1, body[at])
	}
	return nil, errors.New("its checksum does not fit: it was mistyped or changed; copy it whole")
}

func notBase32(r rune) bool { return (r < 'a' || r > 'z') && (r < '2' || r > '7') }

// lengthOf is how long a token with this beginning is; 0 if even the beginning
// is not there.
func lengthOf(raw []byte) int {
	if len(raw) < fixedLength {
		return 0
	}
	return fixedLength + int(raw[fixedLength-1]) + sumLength
}

func sumFits(raw []byte) bool {
	n := len(raw) - sumLength
	return n >= 0 && bytes.Equal(raw[n:], checksum(raw[:n]))
}

// typo finds the one character that, exchanged for another, makes the checksum
// fit; -1 if there is none. One in 10^5 garbled tokens gets a wrong answer.
func typo(body string) int {
	raw, err := base32Lower.DecodeString(body)
	if err != nil || len(raw) < sumLength {
		return -1
	}
	summed := append([]byte(tokenPrefix), raw...)
	raw = summed[len(tokenPrefix):]
	end := len(summed) - sumLength
	for at := range body {
		for other := byte(1); other < 32; other++ {
			flipBits(raw, at, other)
			sum := sha256.Sum256(summed[:end])
			fits := bytes.Equal(summed[end:], sum[:sumLength])
			flipBits(raw, at, other)
			if fits {
				return at
			}
		}
	}
	return -1
}

// flipBits changes the five bits that a character stands for; those beyond raw
// are in its last character only and stand for nothing.
func flipBits(raw []byte, character int, bits byte) {
	at := 5 * character
	wide := uint16(bits) << (11 - at%8)
	for i, b := range [2]byte{byte(wide >> 8), byte(wide)} {
		if k := at/8 + i; k < len(raw) {
			raw[k] ^= b
		}
	}
}

func decodePayload(p []byte) (Invitation, error) {
	if lengthOf(p) != len(p)+sumLength {
		return Invitation{}, errors.New("there is more in it than a token has; copy it alone")
	}
	seconds := int64(binary.BigEndian.Uint64(p))
	i := Invitation{Endpoint: string(p[fixedLength:]), Expires: time.Unix(seconds, 0).UTC()}
	copy(i.CA[:], p[8:])
	copy(i.Secret[:], p[8+len(i.CA):])
	return i, errors.Join(checkExpiry(seconds), checkHostPort(i.Endpoint))
}
