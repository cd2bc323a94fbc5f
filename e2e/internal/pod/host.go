package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// Host is the test's handle of a node's pods. It is safe for concurrent use;
// calls are served one after the other.
type Host struct {
	mu      sync.Mutex
	process *lab.Process
	in      io.WriteCloser
	replies *json.Decoder
	loads   int
}

// Start starts the pods' process on a node.
func Start(l *lab.Lab, n *lab.Node) (*Host, error) {
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childOut.Close()
	p, err := l.Start(lab.Spec{
		Name: "pods-" + n.Name, Path: "/proc/self/exe", Env: []string{childEnv + "=1"},
		Node: n, Cgroup: n.Cgroup, Stdin: childIn, Stdout: childOut,
	})
	if err != nil {
		return nil, err
	}
	return &Host{process: p, in: in, replies: json.NewDecoder(out)}, nil
}

// Close ends the process and with it all pods of the node.
func (h *Host) Close() {
	h.in.Close()
	h.process.Kill()
}

func (h *Host) call(q request) (reply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := json.NewEncoder(h.in).Encode(q); err != nil {
		return reply{}, fmt.Errorf("ask pods: %w", err)
	}
	var r reply
	if err := h.replies.Decode(&r); err != nil {
		return r, fmt.Errorf("read answer of pods: %w", err)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// Add starts a pod's servers; they listen when it returns.
func (h *Host) Add(s Server) error {
	_, err := h.call(request{Op: "add", Server: s})
	return err
}

// Remove ends a pod's servers.
func (h *Host) Remove(name string) error {
	_, err := h.call(request{Op: "remove", Server: Server{Name: name}})
	return err
}

// Burst makes n requests one after the other.
func (h *Host) Burst(l Load, n int) (Counts, error) {
	r, err := h.call(request{Op: "burst", Load: l, Count: n})
	return r.Counts, err
}

// Together makes n requests at the same time.
func (h *Host) Together(l Load, n int) (Counts, error) {
	r, err := h.call(request{Op: "together", Load: l, Count: n})
	return r.Counts, err
}

// Flow is a client that makes requests in a tight loop until it is ended.
type Flow struct {
	Load Load
	host *Host
	id   int
}

// Begin starts a tight loop of requests.
func (h *Host) Begin(l Load) (*Flow, error) {
	h.mu.Lock()
	h.loads++
	f := &Flow{Load: l, host: h, id: h.loads}
	h.mu.Unlock()
	_, err := h.call(request{Op: "begin", Load: l, ID: f.id})
	return f, err
}

// Take returns what became of the requests since the last Take.
func (f *Flow) Take() (Counts, error) {
	r, err := f.host.call(request{Op: "take", ID: f.id})
	return r.Counts, err
}

// End stops the loop and returns what became of the requests since the last
// Take.
func (f *Flow) End() (Counts, error) {
	r, err := f.host.call(request{Op: "end", ID: f.id})
	return r.Counts, err
}
