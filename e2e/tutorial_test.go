package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

const tutorial = "../docs/tutorial.md"

// tutorialBlock is a block of code of the tutorial: commands (sh), or what the
// commands before it print last (text).
var tutorialBlock = regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$")

// lesson is a block of commands, and the lines that have to come back at its
// end, if the tutorial shows any.
type lesson struct{ commands, answer string }

func lessons(text string) []lesson {
	var all []lesson
	for _, m := range tutorialBlock.FindAllStringSubmatch(text, -1) {
		if m[1] == "sh" {
			all = append(all, lesson{commands: m[2]})
		} else if len(all) > 0 {
			all[len(all)-1].answer = m[2]
		}
	}
	return all
}

// lessonEnd marks the end of a block in the output.
const lessonEnd = "--- end of block"

// script types all blocks into one shell, as a reader does, and stops at the
// first command that fails.
func script(all []lesson) string {
	var b strings.Builder
	// Names of namespaces are files, which would else be seen on the machine.
	b.WriteString("set -eu\nmkdir -p /run/netns\nmount -t tmpfs tmpfs /run/netns\n")
	for _, l := range all {
		fmt.Fprintf(&b, "%s\necho '%s'\n", l.commands, lessonEnd)
	}
	return b.String()
}

// TestTutorial types what docs/tutorial.md shows and compares what comes back.
func TestTutorial(t *testing.T) {
	requireLab(t)
	all := lessons(readFile(tutorial))
	if len(all) < 15 {
		t.Fatalf("only %d blocks of commands are in %s", len(all), tutorial)
	}
	for _, dir := range tutorialLeaves(t) { // of a run that was killed
		if os.Remove(dir) != nil {
			_ = os.RemoveAll(dir)
		}
	}
	t.Cleanup(func() { leaveTutorial(t) })
	root, err := filepath.Abs("..")
	must(t, err)
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-s")
	cmd.Dir, cmd.Stdin = root, strings.NewReader(script(all))
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	got := strings.Split(string(out), lessonEnd+"\n")
	if err != nil {
		at := all[min(len(got), len(all))-1]
		t.Fatalf("the tutorial ends with %v in\n%s\nwhich printed\n%s\nand all of it complained\n%s", err, at.commands, got[len(got)-1], problems.String())
	}
	for i, l := range all {
		if !strings.HasSuffix(got[i], l.answer) {
			t.Errorf("after\n%s\nthe tutorial shows\n%s\nand this came back:\n%s", l.commands, l.answer, got[i])
		}
	}
}

// leaveTutorial removes what a tutorial that was cut off has left, and fails if
// one that came to its end left anything.
func leaveTutorial(t *testing.T) {
	for _, dir := range tutorialLeaves(t) {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		t.Errorf("%s is left behind", dir)
		if err := os.Remove(dir); err != nil { // a cgroup has files that cannot be removed
			must(t, os.RemoveAll(dir))
		}
	}
}

// tutorialLeaves are the directories that the tutorial makes outside of its own.
func tutorialLeaves(t *testing.T) []string {
	t.Helper()
	cgroups, err := lab.CgroupMount()
	must(t, err)
	return []string{filepath.Join(cgroups, "rebels-east"), filepath.Join(cgroups, "rebels-west"), "/tmp/rebels"}
}
