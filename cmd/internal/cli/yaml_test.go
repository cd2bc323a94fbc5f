package cli

import (
	"encoding/json"
	"testing"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

// TestYAMLSaysWhatJSONDoes, of any value: texts stay texts, whatever they look
// like.
func TestYAMLSaysWhatJSONDoes(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "true", "null", "~", "1e3", "0x1f", "no", "- a", "a: b", "#", "2026-11-29", "a\nb", "\ttab", "\t\n", "<<", " \n a", "a\n", "'", "\"", "\x7f"}))
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.MapOfN(text, rapid.OneOf(
			rapid.Map(text, func(s string) any { return s }), rapid.Map(rapid.Int32(), func(n int32) any { return n }), rapid.Map(rapid.Bool(), func(b bool) any { return b }),
			rapid.Map(rapid.SliceOfN(text, 0, 3), func(l []string) any { return l }), rapid.Just[any](nil),
		), 0, 5).Draw(t, "value")
		want, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		out, err := YAML(value)
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]any
		if err := yaml.Unmarshal(out, &back); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		again, err := json.Marshal(back)
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if json.Unmarshal(want, &a) != nil || json.Unmarshal(again, &b) != nil {
			t.Fatal("not JSON")
		}
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		if string(x) != string(y) {
			t.Fatalf("got %s, want %s, by\n%s", y, x, out)
		}
	})
}
