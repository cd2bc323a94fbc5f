package server

import (
	"errors"
	"fmt"
	"sync"
)

// speakers know which open connection last reported for each node. The own agents
// share a certificate, so nothing proves who speaks for a node; but an agent that
// was started again has a new connection, and its old one says no more.
type speakers struct {
	mu   sync.Mutex
	last map[string]*conn
}

func newSpeakers() *speakers { return &speakers{last: map[string]*conn{}} }

// speak notes that a connection reports for a node; it speaks for one only. It
// names the one that took over from it if it goes on all the same. One report may
// come late.
func (s *speakers) speak(c *conn, node string) (rival string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-c.done:
		return "", errors.New("the connection is closed")
	default:
	}
	if c.node != "" && c.node != node {
		return "", fmt.Errorf("node %q: this connection reports for node %q; open another one for it", node, c.node)
	}
	if last := s.last[node]; c.node != "" && last == nil {
		rival = "closed by now"
	} else if c.node != "" && last != c {
		rival = last.RemoteAddr().String()
	}
	if rival != "" && !c.late { // a report that was under way when the agent connected again
		c.late = true
		return "", nil
	}
	c.node, s.last[node] = node, c
	return rival, nil
}

// forget is for a connection that is closed.
func (s *speakers) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last[c.node] == c {
		delete(s.last, c.node)
	}
}
