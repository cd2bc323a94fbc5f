package schema

import (
	"testing"

	"pgregory.net/rapid"
)

func TestMarkerIsSpelled(t *testing.T) {
	m := Marker{Stamp: Stamp{1764452000123456, 0x9f2c41d07be6a8f3}, Begun: 1764451990000000, Asked: true}
	if got, want := string(m.Encode()), `{"incarnation":"9f2c41d07be6a8f3","stamp":1764452000123456,"begun":1764451990000000,"asked":true}`; got != want {
		t.Errorf("encoded %s, want %s", got, want)
	}
	if got, want := m.Stamp.String(), "1764452000123456-9f2c41d07be6a8f3"; got != want {
		t.Errorf("stamp %s, want %s", got, want)
	}
	if got, want := MarkerKey("east"), "clustermesh/markers/east/v1"; got != want {
		t.Errorf("key %s, want %s", got, want)
	}
}

func TestMarkersRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Marker{Asked: rapid.Bool().Draw(t, "asked")}
		m.Micros = rapid.Int64Range(1, maxMicros).Draw(t, "micros")
		m.Begun = rapid.Int64Range(0, m.Micros).Draw(t, "begun")
		m.Incarnation = rapid.Uint64().Draw(t, "incarnation")
		if got, err := DecodeMarker("east", m.Encode()); err != nil || got != m {
			t.Fatalf("%s became %+v, %v", m.Encode(), got, err)
		}
		if got, err := ParseStamp(m.Stamp.String()); err != nil || got != m.Stamp {
			t.Fatalf("%s became %+v, %v", m.Stamp, got, err)
		}
	})
}

func TestBadMarkersAreRefused(t *testing.T) {
	for value, field := range map[string]string{
		``: "value", `{}`: "incarnation", `{"incarnation":"1","stamp":1}`: "begun", `{"incarnation":"g","stamp":1,"begun":1}`: "incarnation",
		`{"incarnation":"01","stamp":1,"begun":1}`: "incarnation", `{"incarnation":"1","stamp":9007199254740992,"begun":1}`: "stamp",
		`{"incarnation":"1","stamp":1,"begun":2}`: "begun", `{"incarnation":"1","stamp":-1,"begun":0}`: "stamp",
		`{"incarnation":"1","stamp":1,"stamp":2,"begun":1}`: "stamp", `{"incarnation":"1","stamp":1,"begun":1}x`: "value",
		`{"incarnation":"11112222333344445","stamp":1,"begun":1}`: "incarnation",
	} {
		_, err := DecodeMarker("east", []byte(value))
		wantField(t, err, field)
	}
	for _, text := range []string{"", "1", "1-", "-1", "0-1", "-1-1", "1-01", "01-1", "1-g", "1-1-1", "1-1 ", "+1-1"} {
		if _, err := ParseStamp(text); err == nil {
			t.Errorf("stamp %q is accepted", text)
		}
	}
}

// TestCovers: within a life later covers earlier; another life covers what came
// before it was complete, and nothing else.
func TestCovers(t *testing.T) {
	s := Stamp{Micros: 100, Incarnation: 1}
	for _, tt := range []struct {
		m    Marker
		want bool
	}{
		{Marker{Stamp: Stamp{100, 1}}, true}, {Marker{Stamp: Stamp{101, 1}}, true}, {Marker{Stamp: Stamp{99, 1}, Begun: 99}, false},
		{Marker{Stamp: Stamp{500, 2}, Begun: 101}, true}, {Marker{Stamp: Stamp{500, 2}, Begun: 100}, false}, {Marker{Stamp: Stamp{500, 2}, Begun: 50}, false},
	} {
		if got := tt.m.Covers(s); got != tt.want {
			t.Errorf("%+v covers %+v: %v", tt.m, s, got)
		}
	}
}

func FuzzDecodeMarker(f *testing.F) {
	seed(f, string(Marker{Stamp: Stamp{1764452000123456, 77}, Begun: 5, Asked: true}.Encode()), `{"newer":[1],"incarnation":"0","stamp":0,"begun":0}`)
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := measured(t, len(value), func() (Marker, error) { return DecodeMarker("east", value) })
		checkFuzzed(t, value, got, err, func(b []byte) (record, error) { return DecodeMarker("east", b) })
		if text, err := ParseStamp(string(value)); err == nil && text.String() != string(value) {
			t.Fatalf("stamp %q became %q", value, text)
		}
	})
}
