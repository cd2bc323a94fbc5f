package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/api"
)

// TestUsageIsShown: how full each map is, when that was counted, and what becomes
// of one entry more.
func TestUsageIsShown(t *testing.T) {
	v := newUsage(&api.MapsResponse{Usage: []*api.MapUsage{{Map: "cm_flows", Entries: 196608, Capacity: 262144, AgeSeconds: 12, WhenFull: "some are forgotten"}, {Map: "cm_devices"}}})
	var text strings.Builder
	v.table(&text)
	for _, want := range []string{"MAP\tENTRIES\tCAPACITY\tFULL\tCOUNTED\tWHEN FULL\n", "cm_flows\t196608\t262144\t75%\t12s ago\tsome are forgotten\n", "cm_devices\t0\t0\t0%\t"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	if encoded, err := json.Marshal(v); err != nil || !strings.Contains(string(encoded), `[{"map":"cm_flows","entries":196608,"capacity":262144,"ageSeconds":12,"whenFull":"some are forgotten"},`) {
		t.Errorf("%s, %v", encoded, err)
	}
	if encoded, _ := json.Marshal(newUsage(&api.MapsResponse{})); string(encoded) != "[]" {
		t.Errorf("none: %s", encoded)
	}
}
