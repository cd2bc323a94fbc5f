package main

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/join"
	"github.com/clustermesh/clustermesh/cmd/clustermesh/demo"
)

const membersFile = "testdata/members.golden"

// answers are the types of what commands print for machines.
func answers() map[string]any {
	return map[string]any{
		"status": statusView{}, "status of clusters": clustersView{}, "status wait": waitedView{}, "services": servicesView{}, "maps": mapsView{}, "explain": explanationView{}, "monitor": choiceView{}, "release": releaseView{},
		"troubleshoot": []findingView{}, "sysdump manifest": dumpManifest{}, "certs inspect": []certs.Info{}, "certs check": []certs.Finding{}, "certs renew": []certs.Renewal{},
		"certs rotate": certs.Rotation{}, "certs revoke": []certs.Issued{}, "certs issue": certs.Files{}, "invite list": []join.Invited{}, "demo": demo.Report{},
	}
}

// TestMembersStay: no member of any JSON that was once printed is renamed or
// left out. New ones may come; -update then has them stay as well.
func TestMembersStay(t *testing.T) {
	var now []string
	for name, v := range answers() {
		members(name, reflect.TypeOf(v), &now)
	}
	slices.Sort(now)
	if *update {
		if err := os.WriteFile(membersFile, []byte(strings.Join(now, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(membersFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(golden)) {
		if line = strings.TrimSpace(line); !slices.Contains(now, line) {
			t.Errorf("%s is gone; programs read it", line)
		}
	}
}

// members lists the paths of everything in a type's JSON.
func members(path string, t reflect.Type, out *[]string) {
	switch {
	case t == reflect.TypeFor[time.Time]():
		*out = append(*out, path+" time")
	case t.Kind() == reflect.Pointer:
		members(path, t.Elem(), out)
	case t.Kind() == reflect.Slice || t.Kind() == reflect.Map:
		members(path+"[]", t.Elem(), out)
	case t.Kind() != reflect.Struct:
		*out = append(*out, path+" "+t.Kind().String())
	}
	for i := 0; t.Kind() == reflect.Struct && t != reflect.TypeFor[time.Time]() && i < t.NumField(); i++ {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && name == "":
			members(path, f.Type, out)
		case name == "":
			members(path+"."+f.Name, f.Type, out)
		default:
			members(path+"."+name, f.Type, out)
		}
	}
}
