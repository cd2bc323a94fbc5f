package pod

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// Held is a connection that stays open between requests.
type Held struct {
	host *Host
	id   int
}

// Hold opens a connection of a load, TCP or connected UDP, and makes a request on
// it, which must succeed.
func (h *Host) Hold(l Load) (*Held, error) {
	h.mu.Lock()
	h.loads++
	held := &Held{host: h, id: h.loads}
	h.mu.Unlock()
	if _, err := h.call(request{Op: "hold", Load: l, ID: held.id}); err != nil {
		return nil, err
	}
	answer, err := held.Again()
	if err == nil && answer == "" {
		err = errors.New("no answer")
	}
	return held, err
}

// Again makes another request on the connection and returns who answered, or the
// error as the client saw it.
func (h *Held) Again() (answer string, err error) {
	r, err := h.host.call(request{Op: "again", ID: h.id})
	if err != nil {
		return "", err
	}
	for text := range r.Counts.Failures {
		return "", errors.New(text)
	}
	for name := range r.Counts.By {
		answer = name
	}
	return answer, nil
}

// Drop closes the connection.
func (h *Held) Drop() error {
	_, err := h.host.call(request{Op: "drop", ID: h.id})
	return err
}

type holding struct {
	load Load
	conn net.Conn
}

func (c *child) hold(q request) (Counts, error) {
	network := q.Load.Network
	if network == UDPConnected {
		network = "udp"
	}
	conn, err := net.DialTimeout(network, q.Load.Target.String(), q.Load.limit())
	if err != nil {
		return Counts{}, err
	}
	c.held[q.ID] = holding{q.Load, conn}
	return Counts{}, nil
}

func (c *child) again(q request) (Counts, error) {
	h, ok := c.held[q.ID]
	if !ok {
		return Counts{}, fmt.Errorf("no connection %d", q.ID)
	}
	if q.Op == "drop" {
		delete(c.held, q.ID)
		return Counts{}, h.conn.Close()
	}
	counts := newCounts()
	answer, err := h.request()
	counts.add("", "", answer, err)
	return counts, nil
}

func (h holding) request() (string, error) {
	if err := h.conn.SetDeadline(time.Now().Add(h.load.limit())); err != nil {
		return "", err
	}
	if h.load.Network == TCP {
		return get(h.conn, h.load.Target)
	}
	if _, err := h.conn.Write([]byte("who")); err != nil {
		return "", classify(err)
	}
	buffer := make([]byte, answerMaxSize)
	n, err := h.conn.Read(buffer)
	if err != nil {
		return "", classify(err)
	}
	return string(buffer[:n]), nil
}
