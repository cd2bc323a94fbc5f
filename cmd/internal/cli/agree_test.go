package cli

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// depends are the flags that mean something else in one command than in another.
var depends = map[string]string{
	"api-socket":             "a daemon's own, and the agent's that the tool asks",
	"apiserver":              "what is gathered of it, or asked",
	"apiserver-socket":       "of whole clusters, or of one service",
	"bpffs":                  "the agent's own, and where the tool looks for it",
	"cgroup":                 "the agent's own, and where the tool looks for it",
	"cluster":                "the own one, one of many, or the one of a certificate",
	"cluster-id":             "a daemon's own, or the one to tell others",
	"clusters":               "one directory, one of many, or what is looked at",
	"confirmation":           "written always, or as a last resort",
	"data-dir":               "the apiserver's own, and where the tool looks for it",
	"dir":                    "of a CA: made, used, or one of many",
	"for":                    "a cluster, a time or a stamp",
	"force":                  "what it overrides",
	"life":                   "of an invitation, or of a request",
	"listen":                 "for readers, or for who joins",
	"max-connected-clusters": "of the own cluster, or of the one that reads",
	"name":                   "of a CA, or of a cluster",
	"node":                   "one asked, or whether to check this one",
	"output":                 "a format everywhere, a file of sysdump",
	"peers":                  "of an agent, of an apiserver, or of both sides of a join",
	"state-dir":              "the agent's own, and where the tool looks for it",
	"timeout":                "of what",
	"validity":               "of which certificate",
	"wait":                   "for services, or for what takes minutes",
}

var rowPattern = regexp.MustCompile("(?m)^\\| `(?:-[a-z], )?--([a-z0-9-]+)[^`]*` \\|.*\\| (.+) \\|$")

// TestHelpsAgree reads the three pages of reference, which the commands are held
// to: a flag means the same in every command that has it, or is known not to.
func TestHelpsAgree(t *testing.T) {
	helps := map[string]map[string]bool{}
	for _, page := range []string{"cli", "agent", "apiserver"} {
		text, err := os.ReadFile("../../../docs/" + page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		rows := rowPattern.FindAllStringSubmatch(string(text), -1)
		if len(rows) < 25 {
			t.Errorf("docs/%s.md: only %d flags found", page, len(rows))
		}
		for _, row := range rows {
			if helps[row[1]] == nil {
				helps[row[1]] = map[string]bool{}
			}
			helps[row[1]][row[2]] = true
		}
	}
	for flag, texts := range helps {
		if known := depends[flag] != ""; known != (len(texts) > 1) {
			t.Errorf("--%s has %d helps: let them agree, or say in this test why not (it says: %q):\n  %s",
				flag, len(texts), depends[flag], strings.Join(slices.Sorted(maps.Keys(texts)), "\n  "))
		}
	}
	for flag := range depends {
		if helps[flag] == nil {
			t.Errorf("there is no --%s any more", flag)
		}
	}
}
