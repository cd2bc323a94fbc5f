package export_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// formerRecord is what an agent reads that knows neither node ports nor policies
// for clients outside; what else is in a record it skips.
type formerRecord struct {
	Name      string `json:"name"`
	Frontends []struct {
		Address string `json:"address"`
	} `json:"frontends"`
}

// TestOlderAgentsServeNoMoreThanTheyMay: where clients outside are restricted or
// have to stay on a node, such an agent finds the cluster IP alone.
func TestOlderAgentsServeNoMoreThanTheyMay(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/node-ports.txtar")
	if err != nil {
		t.Fatal(err)
	}
	e := export.New(configOf(""), identity.New(identity.Config{First: 1 << 16, Last: 1 << 17}))
	want := map[string]string{
		"port": "[172.20.0.31 fd00:96::31]", "local": "[172.20.0.32]", "limited": "[172.20.0.33]",
		"inner": "[172.20.0.34]", "odd": "[172.20.0.35]", "headless": "[]",
	}
	for _, step := range []string{"apply-1.yaml", "apply-2.yaml"} {
		for _, r := range e.Apply(parse(t, []byte(part(archive, step)), false)) {
			if r.Kind != schema.KindLocalService {
				continue
			}
			var former formerRecord
			if err := json.Unmarshal(r.Value, &former); err != nil {
				t.Fatal(err)
			}
			var addresses []string
			for _, f := range former.Frontends {
				if n := len(addresses); n == 0 || addresses[n-1] != f.Address {
					addresses = append(addresses, f.Address)
				}
			}
			if got := fmt.Sprint(addresses); got != want[former.Name] {
				t.Errorf("%s after %s: %s, want %s", former.Name, step, got, want[former.Name])
			}
		}
		want["local"] = strings.Replace(want["local"], "]", " 192.0.2.3 192.0.2.7]", 1) // once the policy is Cluster
	}
}
