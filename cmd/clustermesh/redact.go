package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"regexp"
	"strings"
	"unicode"
)

// redactor takes secrets out of text: what has the form of one, and everything
// that contains a part of a key that is known. It rather takes too much.
type redactor struct {
	known map[string]bool // parts of keys, as they would be written
	count int             // of what was taken out
}

// partLength is how much of a key in text is enough to tell it.
const partLength = 16

// maxKeyFile bounds what is read of a key to recognise it.
const maxKeyFile = 64 << 10

// know has the key in a file recognised wherever it turns up, as PEM, base64 or
// hex. A file that cannot be read is none of our secrets to keep.
func (r *redactor) know(keyFile string) {
	text, err := os.ReadFile(keyFile)
	if err != nil || len(text) > maxKeyFile {
		return
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if strings.Contains(block.Type, "PRIVATE KEY") {
			r.knowBytes(block.Bytes)
		}
	}
}

// headerLength is what all keys of a kind begin with.
const headerLength = 36

func (r *redactor) knowBytes(key []byte) {
	if r.known == nil {
		r.known = map[string]bool{}
	}
	add := func(text string) {
		for i := 0; i+partLength <= len(text); i++ {
			r.known[text[i:i+partLength]] = true
		}
	}
	key = key[min(headerLength, len(key)):]
	for shift := range 3 { // where in base64's groups of three bytes it begins
		from := key[min(shift, len(key)):]
		add(base64.RawStdEncoding.EncodeToString(from))
		add(base64.RawURLEncoding.EncodeToString(from))
	}
	add(hex.EncodeToString(key))
	add(strings.ToUpper(hex.EncodeToString(key)))
}

var (
	privatePattern = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`)
	tokenPattern   = regexp.MustCompile(`cmjoin[0-9]+-[A-Za-z0-9_=-]+|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`)
	namedPattern   = regexp.MustCompile(`(?i)((?:authorization|bearer|passw(?:or)?d|secret|token|api[-_]?key|private[-_]?key|client-key-data)["']?\s*[:=]\s*["']?(?:bearer |basic )?)([^\s"',;}]{4,})`)
	colonPattern   = regexp.MustCompile(`(?:[0-9a-fA-F]{2}:){15,}[0-9a-fA-F]{2}`)
	runPattern     = regexp.MustCompile(`[A-Za-z0-9+/_=-]{16,}`)
)

const redacted = "[redacted]"

// text returns text without secrets.
func (r *redactor) text(text string) string {
	replace := func(string) string { r.count++; return redacted }
	text = privatePattern.ReplaceAllStringFunc(text, replace)
	text = tokenPattern.ReplaceAllStringFunc(text, replace)
	text = colonPattern.ReplaceAllStringFunc(text, replace)
	text = namedPattern.ReplaceAllStringFunc(text, func(found string) string {
		r.count++
		return namedPattern.FindStringSubmatch(found)[1] + redacted
	})
	return runPattern.ReplaceAllStringFunc(text, func(run string) string {
		if r.knows(run) || looksSecret(run) {
			r.count++
			return redacted
		}
		return run
	})
}

func (r *redactor) knows(text string) bool {
	if len(r.known) == 0 {
		return false
	}
	for i := 0; i+partLength <= len(text); i++ {
		if r.known[text[i:i+partLength]] {
			return true
		}
	}
	return false
}

// Lengths of texts that could be 32 random bytes or more, and of names that are
// usual between slashes.
const (
	minHex    = 48
	minBase64 = 32
	maxName   = 20
)

// looksSecret tells encoded bytes from names and paths.
func looksSecret(run string) bool {
	if len(run) >= minHex && strings.Trim(run, "0123456789abcdefABCDEF") == "" {
		return true
	}
	return len(run) >= minBase64 && mixed(run) && !looksPath(run)
}

// mixed tells what has small and capital letters, as 32 random bytes in base64
// practically always have.
func mixed(text string) bool {
	return strings.ContainsFunc(text, unicode.IsUpper) && strings.ContainsFunc(text, unicode.IsLower)
}

// looksPath tells an absolute path of short names, of which at most one has
// capital letters.
func looksPath(run string) bool {
	names := strings.Split(run, "/")
	if names[0] != "" || len(names) < 3 || strings.ContainsAny(run, "+=") {
		return false
	}
	capitals := 0
	for _, name := range names {
		if strings.ContainsFunc(name, unicode.IsUpper) {
			capitals++
		}
		if len(name) > maxName {
			return false
		}
	}
	return capitals <= 1
}

// value returns a decoded JSON value without secrets in its texts and names.
func (r *redactor) value(v any) any {
	switch v := v.(type) {
	case string:
		return r.text(v)
	case []any:
		for i := range v {
			v[i] = r.value(v[i])
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, item := range v {
			out[r.text(name)] = r.value(item)
		}
		return out
	}
	return v
}
