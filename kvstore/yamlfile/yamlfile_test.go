package yamlfile

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/clustermesh/clustermesh/kvstore/cost"
)

func TestParse(t *testing.T) {
	doc, err := Parse([]byte("# ours\nname: west\nranges: [10.0.0.0/8, 'fd00::/8']\nca: |\n  -----BEGIN CERTIFICATE-----\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Name   string
		Ranges []string
		CA     string
	}
	if err := doc.Decode(&got); err != nil || got.Name != "west" || len(got.Ranges) != 2 || !strings.HasPrefix(got.CA, "-----BEGIN") {
		t.Errorf("%+v, %v", got, err)
	}
	if text, err := yaml.Marshal(doc); err != nil || !strings.HasPrefix(string(text), "# ours\n") {
		t.Errorf("written again: %q, %v", text, err)
	}
}

// What an operator may have: many addresses, many certificates, much text.
func TestParseReadsLongFiles(t *testing.T) {
	certificate := "  -----BEGIN CERTIFICATE-----\n" + strings.Repeat("  "+strings.Repeat("Ab+/", 16)+"\n", 12) + "  -----END CERTIFICATE-----\n"
	for name, text := range map[string]string{
		"ranges":       "pod-cidrs:\n" + strings.Repeat("- 10.0.0.0/24\n", 1024) + "six:\n" + strings.Repeat("- fd00:1:2:3::/64\n", 1024),
		"flow list":    "services: [" + strings.Repeat("shop/checkout, ", 5000) + "]\n",
		"certificates": "ca: |\n" + strings.Repeat(certificate, 1000),
		"comments":     strings.Repeat(strings.Repeat("#", 80)+"\n", 1000) + "a: b\n",
		"members":      members(maxMembers),
	} {
		if _, err := Parse([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func members(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "member-%d: 1\n", i)
	}
	return b.String()
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   ErrEmpty.Error(),
		"# nothing\n":                        ErrEmpty.Error(),
		"a: [":                               "line 1",
		"{\"name\": \"x\"}}":                 "behind the document",
		"%YAML 1.1\n---\na: 1\n":             "line 1: a directive",
		"a: 1\n...\n%TAG ! x\n---\nb: 1\n":   "line 3: a directive",
		"\ufeff%TAG ! x\n---\na: 1\n":        "a directive",
		"a: &x b\n*x : c\n":                  "line 2: *x is an alias",
		"a: 1\n--- \nb: 2\n":                 "line 3: another document",
		"a: 1\nb: 2\na: 3\n":                 `line 3: member "a" is already set in line 1`,
		"x: {a: 1, a: 2}\n":                  `member "a" is already set`,
		"a: &a [b]\nc: *a\n":                 "line 2: *a is an alias",
		"? [a]\n: b\n":                       "line 1: the name of a member is a list",
		members(maxMembers + 1):              "a mapping of 1001 members",
		strings.Repeat("[", smallMarks*2):    "brackets",
		"\xff\xfea\x00:\x00 \x001\x00":       "UTF-16",
		"\xfe\xff\x00a\x00:\x00 \x001":       "UTF-16",
		"a: " + strings.Repeat("- ", 10_000): "list items",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error %v, want one with %q", text, err, want)
		}
	}
	if _, err := Parse(nil); !errors.Is(err, ErrEmpty) {
		t.Errorf("error %v, want ErrEmpty", err)
	}
}

// stuffing is what is small in a file and large in memory, or slow to read, if
// it is repeated.
var stuffing = []string{
	"?a,", "'':b,", "a:b,", "&a:b,", "&a a: b,", "? a : b,", "[],", "{},", "a,", "\"\":,", "{a: b},", "- !b\n", "#\n #\n",
	"[", "{", "[a,", "{a: ", "{'':", "[a: ", "[? a,", "{? ", "[\"\":,", "{1,", "[[],", "[:,",
	"- ", "? ", "- - a\n", "-\n", "?\n", "a:\n", "a: b\n", "a: #b\n", "<<: {}\n", "- <<: {}\n", "- a: b\n", "- 1\n", "- 2001-01-01\n",
	"#\n", "- #\n", "#a\n- b\n#c\n", "- a #b\n", "- &a !b\n", "x: &a\n", "[*a,", "- !!binary a\n", "- !!float 1\n",
	"---\n", "...\n---\n", "%TAG ! a\n", "\n", "a\n", "\"\\n", "- |\n", "- >\n", "- ''\n", "\r", "- \r", "-\u0085", "a:\u2028",
}

// TestStuffedFilesCostLittleMemory stuffs files of all shapes, as far as is let
// through and further.
func TestStuffedFilesCostLittleMemory(t *testing.T) {
	for _, u := range stuffing {
		for _, shape := range []string{"%s", "a:\n%s", "a: [%s]\n", "a: {%s}\n", "- - - - - - - -\n%s"} {
			t.Run(fmt.Sprintf("%q in %q", u, shape), func(t *testing.T) {
				each := max(1, marks([]byte(strings.Repeat(u, 100)))/100)
				for _, n := range []int{smallMarks/each - 8, mostMarks/each - 20, (64 << 10) / len(u)} {
					raw := fmt.Appendf(nil, shape, strings.Repeat(u, n))
					if marks(raw) <= mostMarks { // the size that allows for so many
						raw = append(raw, "#"+strings.Repeat("x", max(0, bytesPerMark*(marks(raw)+1-smallMarks)-len(raw)))...)
					}
					cost.Bounded(t, len(raw), Overhead, func() { decode(raw) })
				}
			})
		}
	}
}

// decode reads a file into the shapes that files have.
func decode(raw []byte) {
	doc, err := Parse(raw)
	if err != nil {
		return
	}
	var members map[string]any
	var list []string
	var typed struct {
		A []string
		X struct{ A []string }
	}
	_, _, _ = doc.Decode(&members), doc.Decode(&list), doc.Decode(&typed)
}

func TestKnown(t *testing.T) {
	for text, want := range map[string]string{
		"a: 1\nb: 2\n": "", "{}": "",
		"a: 1\nc: 2\n":      `line 2: member "sees.c" is not known; the members are a, b`,
		"a: 1\nb:\n# - c\n": `line 2: member "sees.b" has no value; write one, or remove the member`, "{a: ~}": `line 1: member "sees.a" has no value; write one, or remove the member`,
		"a: ''\nb: []\n": "", // whose business it is
		"- a\n":          `line 1: "sees": write the members a, b`,
	} {
		doc, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := Known(doc.Content[0], "sees.", "a", "b"); (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

// FuzzParse checks that no file costs more than is said, and that what is
// accepted can be decoded at the same price.
func FuzzParse(f *testing.F) {
	for _, u := range stuffing {
		f.Add([]byte(strings.Repeat(u, 1+400/len(u))))
	}
	f.Add([]byte("# ours\nname: west\nsees: {namespaces: [a]}\nca: |\n  -----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cost.Bounded(t, len(raw), Overhead, func() { decode(raw) })
	})
}
