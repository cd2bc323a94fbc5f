package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
)

// awaitFile waits until the file of annotations holds a text, or does not.
func (s *simulation) awaitFile(text string, holds bool) {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		data, _ := os.ReadFile(filepath.Join(s.dir, writtenFile)) // not there yet
		if strings.Contains(string(data), text) == holds {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the file holds %q", data)
		}
		time.Sleep(time.Millisecond) // polling with a deadline
	}
}

// TestAnnotationsSurviveARestartWithoutTheOwnCluster: while the own cluster
// cannot be heard after a restart, services are decided on as before, whatever
// the others say meanwhile.
func TestAnnotationsSurviveARestartWithoutTheOwnCluster(t *testing.T) {
	s := newSimulation(t)
	home := s.clusters["home"]
	home.adjust = policy("tiers", "local; *")
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.awaitState("east", "synced", "")
	s.await(s.want("home"))
	s.awaitFile(`"tiers":"local; *"`, true)
	s.stop()
	s.kernel.most.Store(0)
	known := `{"ns/s1":{"tiers":"local; *"},"ns/gone":{"tiers":"local"}}`
	if err := os.WriteFile(filepath.Join(s.dir, writtenFile), []byte(known), 0o600); err != nil {
		t.Fatal(err)
	}
	home.down.Store(true)
	s.start()
	s.awaitFile("ns/gone", true) // of a service that was never in the maps
	s.awaitState("east", "synced", "")
	s.say("east", "s1", "10.2.0.1:80", "10.2.0.2:80")
	s.say("west", "s1", "10.3.0.1:80")
	s.awaitCluster("west", "heard", func(c *api.Cluster) bool { return c.GetBackends() == 1 })
	s.await(s.want("home"))
	if most := s.kernel.most.Load(); most > 1 {
		t.Errorf("%d backends were used at some moment", most)
	}
	home.adjust = nil
	home.publish("s1")
	home.down.Store(false)
	s.await(s.want(all...)) // the own cluster's word counts as soon as it is heard
	s.awaitFile("{}", true)
}

// TestABadFileOfAnnotationsIsNoObstacle: it is told, and counts as empty.
func TestABadFileOfAnnotationsIsNoObstacle(t *testing.T) {
	dir := t.TempDir()
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for _, content := range []string{"{", "null", `{"ns/web":1}`, `[]`} {
		if err := os.WriteFile(filepath.Join(dir, writtenFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		w := readWritten(dir, logger)
		if len(w.all) != 0 || (content != "null") != strings.Contains(log.String(), "not readable") {
			t.Errorf("%s: %v, log %q", content, w.all, log.String())
		}
		w.note(lb.ServiceName{Namespace: "ns", Name: "web"}, map[string]string{"tiers": "local"})
	}
	if err := forgetState(dir); err != nil {
		t.Error(err)
	}
	if err := forgetState(dir); err != nil {
		t.Errorf("a second time: %v", err)
	}
	log.Reset()
	if w := readWritten(dir, logger); len(w.all) != 0 || log.Len() > 0 {
		t.Errorf("without a file: %v, log %q", w.all, log.String())
	}
}

// TestCleanupLeavesAnEmptyDirectory: whatever an agent made in its state
// directory goes, also what one that was killed could not remove, and the next
// agent gets its lock.
func TestCleanupLeavesAnEmptyDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"annotations.json", "annotations.json.new", "distances.json", "distances.json.new", "agent.sock"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		lock, err := lockState(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(forgetState(dir), lock.Close()); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("a cleanup leaves %v: %v", left, err)
		}
	}
	lock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := lockState(dir); err == nil {
		t.Error("two hold the lock")
	}
	// One that opened the file before a cleanup removed it has not got the lock.
	if err := os.Remove(filepath.Join(dir, lockFile)); err != nil {
		t.Fatal(err)
	}
	if isAt(lock, filepath.Join(dir, lockFile)) {
		t.Error("a lock that was removed counts")
	}
}
