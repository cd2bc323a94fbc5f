package source

import "github.com/clustermesh/clustermesh/apiserver/export"

// Trim is trim, for tests of what it keeps.
func Trim(changes []export.Change) []export.Change {
	var trimmed []export.Change
	for _, c := range changes {
		trimmed = append(trimmed, export.Change{Deleted: c.Deleted, Object: trim(c.Object)})
	}
	return trimmed
}
