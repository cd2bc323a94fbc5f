package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// pause lies between two requests of a tight loop, so that a few loops do not
// take the whole machine from what they test.
const pause = 2 * time.Millisecond

// IsChild tells whether this process was started by [Start].
func IsChild() bool { return os.Getenv(childEnv) != "" }

// Main is the program of the child: it serves calls until its input ends.
func Main() {
	c := &child{pods: map[string]*servers{}, flows: map[int]*flow{}, held: map[int]holding{}}
	if err := c.serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type child struct {
	pods  map[string]*servers
	flows map[int]*flow
	held  map[int]holding
}

func (c *child) serve(in io.Reader, out io.Writer) error {
	requests, replies := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q request
		if err := requests.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		counts, err := c.handle(q)
		r := reply{Counts: counts}
		if err != nil {
			r.Error = err.Error()
		}
		if err := replies.Encode(r); err != nil {
			return err
		}
	}
}

func (c *child) handle(q request) (Counts, error) {
	switch q.Op {
	case "add":
		return Counts{}, c.add(q.Server)
	case "remove":
		return Counts{}, c.remove(q.Server.Name)
	case "burst":
		return burst(q.Load, q.Count), nil
	case "together":
		return together(q.Load, q.Count), nil
	case "begin":
		c.flows[q.ID] = begin(q.Load)
		return Counts{}, nil
	case "take", "end":
		return c.take(q)
	case "hold":
		return c.hold(q)
	case "again", "drop":
		return c.again(q)
	}
	return Counts{}, fmt.Errorf("no operation %q", q.Op)
}

func (c *child) add(s Server) error {
	if c.pods[s.Name] != nil {
		return fmt.Errorf("pod %s exists", s.Name)
	}
	run, err := open(s)
	if err == nil {
		c.pods[s.Name] = run
	}
	return err
}

func (c *child) remove(name string) error {
	run := c.pods[name]
	if run == nil {
		return fmt.Errorf("no pod %s", name)
	}
	delete(c.pods, name)
	return run.close()
}

func (c *child) take(q request) (Counts, error) {
	f := c.flows[q.ID]
	if f == nil {
		return Counts{}, fmt.Errorf("no flow %d", q.ID)
	}
	if q.Op == "end" {
		delete(c.flows, q.ID)
		f.end()
	}
	return f.take(), nil
}

func burst(l Load, n int) Counts {
	counts := newCounts()
	for range n {
		peer, answer, err := l.do()
		counts.add(peer, l.Target.String(), answer, err)
	}
	return counts
}

// together makes n requests at the same time.
func together(l Load, n int) Counts {
	counts := newCounts()
	var mu sync.Mutex
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			peer, answer, err := l.do()
			mu.Lock()
			defer mu.Unlock()
			counts.add(peer, l.Target.String(), answer, err)
		})
	}
	all.Wait()
	return counts
}

// flow is a running tight loop.
type flow struct {
	mu     sync.Mutex
	counts Counts
	stop   chan struct{}
	done   chan struct{}
}

func begin(l Load) *flow {
	f := &flow{counts: newCounts(), stop: make(chan struct{}), done: make(chan struct{})}
	go f.run(l)
	return f
}

func (f *flow) run(l Load) {
	defer close(f.done)
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		peer, answer, err := l.do()
		f.mu.Lock()
		f.counts.add(peer, l.Target.String(), answer, err)
		f.mu.Unlock()
		select {
		case <-f.stop:
			return
		case <-ticker.C:
		}
	}
}

func (f *flow) end() {
	close(f.stop)
	<-f.done
}

func (f *flow) take() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	taken := f.counts.clone()
	f.counts = newCounts()
	return taken
}
