package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strings"
)

const sbomSuffix = ".cdx.json"

// bom is the part of CycloneDX 1.6 that is used here
// (https://cyclonedx.org/docs/1.6/json/). There is no time in it: the same binary
// has the same description.
type bom struct {
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	SerialNumber string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component  component  `json:"component"`
	Properties []property `json:"properties,omitempty"`
}

type component struct {
	Ref     string `json:"bom-ref"`
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Scope   string `json:"scope,omitempty"`
	Hashes  []hash `json:"hashes,omitempty"`
	PURL    string `json:"purl"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"` // hex
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

// describe writes the bill of materials of a binary beside it and returns the
// number of modules. It refuses a binary with a module older than required.
func describe(file string) (modules int, err error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read build information: %w; give a binary that Go built with modules", err)
	}
	if err := checkFloors(info); err != nil {
		return 0, err
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	b, err := newBOM(filepath.Base(file), sha256.Sum256(raw), info)
	if err != nil {
		return 0, err
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return 0, err
	}
	return len(info.Deps), os.WriteFile(file+sbomSuffix, append(text, '\n'), 0o644) //nolint:gosec // for everybody to read
}

// newBOM describes a binary with that sum. The build information does not tell
// which module requires which, so all are listed as required by the binary.
func newBOM(name string, sum [sha256.Size]byte, info *debug.BuildInfo) (*bom, error) {
	root := module(info.Main.Path, info.Main.Version)
	root.Type, root.Name, root.Hashes = "application", name, []hash{{"SHA-256", hex.EncodeToString(sum[:])}}
	root.PURL += "#" + strings.TrimPrefix(strings.TrimPrefix(info.Path, info.Main.Path), "/")
	root.Ref = root.PURL
	std := module("std", strings.TrimPrefix(info.GoVersion, "go"))
	b := &bom{
		Format: "CycloneDX", SpecVersion: "1.6", Version: 1, SerialNumber: serial(sum),
		Metadata: metadata{Component: root, Properties: properties(info)}, Components: []component{std},
	}
	for _, d := range info.Deps {
		c, err := dependencyOf(d)
		if err != nil {
			return nil, err
		}
		b.Components = append(b.Components, c)
	}
	all := dependency{Ref: root.Ref}
	for _, c := range b.Components {
		all.DependsOn = append(all.DependsOn, c.Ref)
	}
	b.Dependencies = []dependency{all}
	return b, nil
}

// module describes a Go module as package URLs do
// (https://github.com/package-url/purl-spec, type golang).
func module(name, version string) component {
	purl := "pkg:golang/" + name + "@" + url.QueryEscape(version)
	return component{Ref: purl, Type: "library", Name: name, Version: version, PURL: purl}
}

// dependencyOf describes a module with the sum of its files that go.sum holds: a
// SHA-256 over their names and sums, which the Go tool checked when it built.
func dependencyOf(m *debug.Module) (component, error) {
	if m.Replace != nil {
		m = m.Replace
	}
	sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
	if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(m.Sum, "h1:") {
		return component{}, fmt.Errorf("module %s has the sum %q, not one that go.sum holds; build with modules from a proxy or a repository, not from a directory", m.Path, m.Sum)
	}
	c := module(m.Path, m.Version)
	c.Scope, c.Hashes = "required", []hash{{"SHA-256", hex.EncodeToString(sum)}}
	return c, nil
}

// properties tells how the binary was built.
func properties(info *debug.BuildInfo) []property {
	all := []property{{"clustermesh:build:go", info.GoVersion}, {"clustermesh:build:package", path.Clean(info.Path)}}
	for _, s := range info.Settings {
		all = append(all, property{"clustermesh:build:" + s.Key, s.Value})
	}
	return all
}

// serial makes a serial number, a UUID of version 8 (RFC 9562), of the binary's
// sum.
func serial(sum [sha256.Size]byte) string {
	u := sum
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
