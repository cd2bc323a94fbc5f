package clustermesh_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docLink is a link of a Markdown file to something in the repository.
var docLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// documents are all Markdown files for readers.
func documents(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/adr/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func document(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// anchors are the names by which links find the headings of a text.
func anchors(text string) []string {
	var out []string
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		kept := regexp.MustCompile(`[^\p{L}\p{N}\- ]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		out = append(out, strings.ReplaceAll(kept, " ", "-"))
	}
	return out
}

// TestLinks: what a document links to is there, down to the heading.
func TestLinks(t *testing.T) {
	count := 0
	for _, file := range documents(t) {
		for _, link := range docLink.FindAllStringSubmatch(document(t, file), -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			count++
			requireTarget(t, file, link[1])
		}
	}
	if count < 60 {
		t.Errorf("only %d links were found", count)
	}
}

func requireTarget(t *testing.T, file, link string) {
	t.Helper()
	path, anchor, _ := strings.Cut(link, "#")
	target := file
	if path != "" {
		target = filepath.Join(filepath.Dir(file), path)
	}
	if _, err := os.Stat(target); err != nil {
		t.Errorf("%s links to %s, which is not there", file, link)
	} else if anchor != "" && !slices.Contains(anchors(document(t, target)), anchor) {
		t.Errorf("%s links to %s, a heading that is not there", file, link)
	}
}

// TestReadmeLeadsEverywhere: README links to every page of docs.
func TestReadmeLeadsEverywhere(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		if !strings.Contains(document(t, "README.md"), "]("+page+")") {
			t.Errorf("README.md does not link to %s", page)
		}
	}
}
