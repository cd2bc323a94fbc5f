package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

const (
	plantedID     = "GO-2026-0000"
	plantedModule = "github.com/spf13/cobra"
)

// plantDatabase writes a database with one invented advisory into a directory:
// every version of a module that all three binaries use is said to be
// vulnerable. Who scans with it and finds nothing does not scan.
func plantDatabase(dir string, now time.Time, out io.Writer) error {
	type object = map[string]any
	at := now.UTC().Format(time.RFC3339)
	about := object{"id": plantedID, "modified": at}
	for name, content := range map[string]any{
		"index/db.json":      object{"modified": at},
		"index/modules.json": []object{{"path": plantedModule, "vulns": []object{about}}},
		"index/vulns.json":   []object{about},
		"ID/" + plantedID + ".json": object{
			"schema_version": "1.3.1", "id": plantedID, "modified": at, "published": at, "summary": "planted", "details": "planted",
			"affected": []object{{
				"package":            object{"name": plantedModule, "ecosystem": "Go"},
				"ranges":             []object{{"type": "SEMVER", "events": []object{{"introduced": "0"}}}},
				"ecosystem_specific": object{"imports": []object{{"path": plantedModule}}},
			}},
			"database_specific": object{"url": "https://pkg.go.dev/vuln/" + plantedID},
		},
	} {
		if err := writeJSON(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("plant a database: %w", err)
		}
	}
	_, err := fmt.Fprintln(out, plantedID)
	return err
}

func writeJSON(path string, content any) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // nothing secret
		return err
	}
	return os.WriteFile(path, raw, 0o644) //nolint:gosec // nothing secret
}
