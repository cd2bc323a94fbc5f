// Package examples holds the manifests of two clusters, east and west, that
// share the global service galaxy/rebel-base. They are for the apiserver's
// --manifests and for clustermesh demo.
package examples

import (
	"embed"
	"io/fs"
)

//go:embed east west
var files embed.FS

// FS returns the manifests: one directory per cluster, named after it.
func FS() fs.FS { return files }
