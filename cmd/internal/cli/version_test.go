package cli

import (
	"runtime/debug"
	"testing"
)

func TestBuildOf(t *testing.T) {
	vcs := func(modified string) []debug.BuildSetting {
		return []debug.BuildSetting{{Key: "-trimpath", Value: "true"}, {Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "0123abcd"}, {Key: "vcs.time", Value: "2026-11-30T01:02:03Z"}, {Key: "vcs.modified", Value: modified}}
	}
	tests := map[string]struct {
		info    *debug.BuildInfo
		release string
		want    Build
		text    string
	}{
		"a tag":         {&debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "v1.2.3"}, Settings: vcs("false")}, "", Build{"v1.2.3", "0123abcd", "2026-11-30T01:02:03Z", false, "go1.26.0"}, "v1.2.3 (commit 0123abcd, 2026-11-30T01:02:03Z, go1.26.0)"},
		"with changes":  {&debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "v1.2.4-0.2+dirty"}, Settings: vcs("true")}, "", Build{"v1.2.4-0.2+dirty", "0123abcd", "2026-11-30T01:02:03Z", true, "go1.26.0"}, "v1.2.4-0.2+dirty (commit 0123abcd with changes, 2026-11-30T01:02:03Z, go1.26.0)"},
		"no checkout":   {&debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "(devel)"}}, "", Build{Version: "devel", Go: "go1.26.0"}, "devel (built outside a checkout, go1.26.0)"},
		"by the linker": {&debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "(devel)"}}, "v1.2.3", Build{Version: "v1.2.3", Go: "go1.26.0"}, "v1.2.3 (go1.26.0)"},
		"the linker wins over a commit without a tag": {&debug.BuildInfo{Main: debug.Module{Version: "v0.0.0-2"}, Settings: vcs("false")}, "v1.2.3", Build{Version: "v1.2.3", Commit: "0123abcd", Date: "2026-11-30T01:02:03Z"}, "v1.2.3 (commit 0123abcd, 2026-11-30T01:02:03Z)"},
		"nothing at all": {nil, "", Build{Version: "devel"}, "devel (built outside a checkout)"},
	}
	for name, test := range tests {
		got := buildOf(test.info, test.release)
		if got != test.want || got.String() != test.text {
			t.Errorf("%s: %+v, shown as %q; want %+v, %q", name, got, got.String(), test.want, test.text)
		}
	}
}
