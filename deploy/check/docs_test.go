package check

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// fenced is a block of code with commands, inline a piece of code in a line.
	fenced = regexp.MustCompile("(?ms)^```(?:sh)?\n(.*?)^```$")
	// others are blocks of any language, which are no pieces of code in lines.
	others = regexp.MustCompile("(?ms)^```.*?^```$")
	inline = regexp.MustCompile("`([^`\n]+)`")
	// called is a call of one of the product's commands: at a line's beginning, or
	// behind what the documents run commands with.
	called = regexp.MustCompile(`(?:^|\s-- |sudo |until |while |[|&({] ?|(?:pod|node) \S+ |nsenter \S+ )(clustermesh(?:-agent|-apiserver)?(?: .*)?$)`)
	// ends is where the command line of a call is over.
	ends = regexp.MustCompile(` (?:[|&#<>]|2>)|;`)
)

// calls are the command lines of the product's commands in a document.
func calls(text string) []string {
	var code []string
	for _, block := range fenced.FindAllStringSubmatch(text, -1) {
		code = append(code, strings.Split(strings.ReplaceAll(block[1], "\\\n", " "), "\n")...)
	}
	for _, piece := range inline.FindAllStringSubmatch(others.ReplaceAllString(text, ""), -1) {
		code = append(code, piece[1])
	}
	var out []string
	for _, line := range code {
		if m := called.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			out = append(out, ends.Split(m[1], 2)[0])
		}
	}
	return out
}

// checkDocuments: every command that a document shows exists with its flags.
func checkDocuments(t *testing.T, bin string) {
	files, err := filepath.Glob(root + "/docs/*.md")
	must(t, err)
	files = append(files, root+"/README.md", root+"/SECURITY.md", root+"/ARCHITECTURE.md")
	var lines []string
	for _, file := range files {
		lines = append(lines, calls(readFile(t, file))...)
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	if len(lines) < 100 {
		t.Errorf("only %d commands were found", len(lines))
	}
	for _, line := range lines {
		requireFlags(t, bin, line)
	}
}
