package cli

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"strings"
)

// release is the version of a release. Nobody writes it but the linker (make build
// VERSION=v1.2.3), for builds that cannot ask a checkout for its tag.
var release string

// unnamed is the version of what nobody named.
const unnamed = "devel"

// Build says what a binary was made of. Version is the tag of the commit, or Go's
// name for a commit without one, or "devel" where the build saw no checkout; Commit
// and Date, of the commit, are empty there.
type Build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Date     string `json:"date"`
	Modified bool   `json:"modified"` // there were changes that were not committed
	Go       string `json:"go"`
}

// ThisBuild is that of the running binary. It depends on nothing but what was
// built, so that a build can be repeated.
func ThisBuild() Build {
	info, _ := debug.ReadBuildInfo()
	return buildOf(info, release)
}

func buildOf(info *debug.BuildInfo, release string) Build {
	if info == nil {
		info = &debug.BuildInfo{}
	}
	b := Build{Version: release, Go: info.GoVersion}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	if b.Version == "" && info.Main.Version != "(devel)" {
		b.Version = info.Main.Version
	}
	b.Version = cmp.Or(b.Version, unnamed)
	return b
}

// String is what --version shows after the name of the command.
func (b Build) String() string {
	var parts []string
	switch {
	case b.Commit != "" && b.Modified:
		parts = append(parts, "commit "+b.Commit+" with changes")
	case b.Commit != "":
		parts = append(parts, "commit "+b.Commit)
	case b.Version == unnamed:
		parts = append(parts, "built outside a checkout")
	}
	if b.Date != "" {
		parts = append(parts, b.Date)
	}
	if b.Go != "" {
		parts = append(parts, b.Go)
	}
	return fmt.Sprintf("%s (%s)", b.Version, strings.Join(parts, ", "))
}
