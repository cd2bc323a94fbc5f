package source

import (
	"strings"
	"testing"
)

// TestListsWithinListsAreRefused: reading what is below a list once more for
// each list around it would cost a small file seconds.
func TestListsWithinListsAreRefused(t *testing.T) {
	for _, data := range []string{
		`{"kind":"List","apiVersion":"v1","items":[{"kind":"List","apiVersion":"v1","items":[]}]}`,
		`{"kind":"ListList","apiVersion":"v1","items":[{"items":[]}]}`,
		strings.Repeat(`{"kind":"List","apiVersion":"v1","items":[`, 2000) + strings.Repeat("]}", 2000),
	} {
		_, err := decodeManifests([]byte(data))
		if err == nil || !strings.Contains(err.Error(), "items[0]: a list within a list") {
			t.Errorf("%.80s: got %v", data, err)
		}
	}
	if objects, err := decodeManifests([]byte(`{"kind":"ServiceList","apiVersion":"v1","items":[{"metadata":{"name":"a"}}]}`)); err != nil || len(objects) != 1 {
		t.Errorf("a list of services: got %v, error %v", objects, err)
	}
}
