package source

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// keep is a directory with a copy of the last good content of each manifest,
// "" for none. It is what makes a broken file harmless over a restart.
type keep string

// newKeep gives each directory of manifests its own place below dir.
func newKeep(manifests, dir string) keep {
	if dir == "" {
		return ""
	}
	if absolute, err := filepath.Abs(manifests); err == nil {
		manifests = absolute
	}
	sum := sha256.Sum256([]byte(manifests))
	return keep(filepath.Join(dir, hex.EncodeToString(sum[:8])))
}

func (k keep) save(name string, data []byte) error {
	if k == "" {
		return nil
	}
	path := filepath.Join(string(k), name)
	err := os.MkdirAll(string(k), 0o700)
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("keep the good state of %s for the next start: %w; check the data directory", name, err)
	}
	return nil
}

// load returns the kept objects of a file, none if there are none.
func (k keep) load(name string) map[key]metav1.Object {
	if k == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(string(k), name))
	if err != nil {
		return nil
	}
	objects, err := decodeManifests(data)
	if err != nil {
		return nil
	}
	return objects
}

// forget drops a copy. One that cannot be dropped does no harm while its file
// is away.
func (k keep) forget(name string) {
	if k != "" {
		os.Remove(filepath.Join(string(k), name)) //nolint:errcheck // see above
	}
}

// prune drops the copies of files that do not exist.
func (k keep) prune(names []string) {
	entries, err := os.ReadDir(string(k))
	if err != nil {
		return
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			k.forget(e.Name())
		}
	}
}
