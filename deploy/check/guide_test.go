package check

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/strvals"
)

const guide = root + "/docs/install.md"

var (
	// blocks are the code blocks of the guide that hold commands.
	blocks = regexp.MustCompile("(?ms)^```\n(.*?)^```$")
	// longFlag is a flag of a command.
	longFlag = regexp.MustCompile(`(?:^|\s)--([a-z][-a-z]*)`)
	// valueName is a value of the chart as --set and the guide's prose write it.
	valueName = regexp.MustCompile(`(?:^|[^-/.\w])((?:cluster|cilium|peers|tls|apiserver|agent|networkPolicy|monitor)(?:\.[a-zA-Z]+)+)\b`)
	// setting is an argument of --set.
	setting = regexp.MustCompile(`--set ('[^']+'|\S+)`)
)

// commands are the lines in which an operator calls the product's command.
func commands(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "clustermesh ") {
			before, _, _ := strings.Cut(line, " | ")
			out = append(out, before)
		}
	}
	return out
}

// requireFlags has the command's help name every flag of a line.
func requireFlags(t *testing.T, bin, line string) {
	t.Helper()
	program, rest, _ := strings.Cut(line, " ")
	words := strings.Fields(rest)
	end := slices.IndexFunc(words, func(w string) bool { return !regexp.MustCompile(`^[a-z]+$`).MatchString(w) })
	if end < 0 {
		end = len(words)
	}
	help, err := exec.Command(filepath.Join(bin, program), append(slices.Clone(words[:end]), "--help")...).CombinedOutput()
	if err != nil {
		t.Errorf("%s\nis not known: %v: %s", line, err, help)
	}
	if end > 0 && !strings.Contains(string(help), program+" "+words[0]) {
		t.Errorf("%s\nhas %s, which %s does not know", line, words[0], program)
	}
	for _, m := range longFlag.FindAllStringSubmatch(line, -1) {
		if !strings.Contains(string(help), "--"+m[1]+" ") {
			t.Errorf("%s\nhas --%s, which this command does not know", line, m[1])
		}
	}
}

// checkGuide: the commands of the guide and of the release's notes exist with
// their flags.
func checkGuide(t *testing.T, bin string) {
	var lines []string
	for _, block := range blocks.FindAllStringSubmatch(readFile(t, guide), -1) {
		lines = append(lines, commands(block[1])...)
	}
	for _, name := range []string{"default", "members", "certmanager", "cleanup", "persistent"} {
		texts, err := render(valuesOf(t, filepath.Join(values, name+".yaml")))
		must(t, err)
		lines = append(lines, commands(texts["NOTES.txt"])...)
		if strings.Contains(texts["NOTES.txt"], "<no value>") {
			t.Errorf("the notes for %s lack a value:\n%s", name, texts["NOTES.txt"])
		}
	}
	if len(lines) < 15 {
		t.Errorf("only %d commands were found", len(lines))
	}
	for _, line := range lines {
		requireFlags(t, bin, line)
	}
}

// TestGuideNamesValues: every value that the guide names is one of the chart's.
func TestGuideNamesValues(t *testing.T) {
	all := valuesOf(t, chartDir+"/values.yaml")
	names := valueName.FindAllStringSubmatch(readFile(t, guide), -1)
	if len(names) < 20 {
		t.Errorf("only %d values were found", len(names))
	}
	for _, found := range names {
		name := found[1]
		if slices.Contains(notValues(), name) {
			continue
		}
		var at any = all
		for part := range strings.SplitSeq(name, ".") {
			members, _ := at.(map[string]any)
			value, found := members[part]
			if !found {
				t.Errorf("the guide names %s, which the chart does not know", name)
				break
			}
			at = value
		}
	}
}

// notValues are what only looks like a value of the chart: members of Secrets,
// pages, and what is below values that hold anything.
func notValues() []string {
	return []string{"tls.crt", "tls.key", "agent.md", "apiserver.md", "agent.seLinuxOptions.type"}
}

// TestGuideSettings: the chart takes what the guide sets.
func TestGuideSettings(t *testing.T) {
	lines := 0
	for line := range strings.Lines(readFile(t, guide)) {
		found := setting.FindAllStringSubmatch(line, -1)
		if !strings.HasPrefix(line, "helm ") || len(found) == 0 {
			continue
		}
		v := map[string]any{"cluster": map[string]any{"name": "east", "id": int64(1)}}
		for _, s := range found {
			must(t, strvals.ParseInto(strings.Trim(s[1], "'"), v))
		}
		if _, err := render(v); err != nil {
			t.Errorf("%s%v", line, err)
		}
		lines++
	}
	if lines < 4 {
		t.Errorf("only %d settings were found", lines)
	}
}
