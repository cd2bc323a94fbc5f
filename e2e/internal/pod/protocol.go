package pod

import (
	"cmp"
	"maps"
	"net/netip"
	"time"
)

// childEnv makes the test binary act as the pods of a node.
const childEnv = "CLUSTERMESH_E2E_PODS"

// Networks that clients and servers speak. UDP clients come in two kinds: with
// a connected socket, and with an unconnected one that sends to an address.
const (
	TCP           = "tcp"
	UDP           = "udp"
	UDPConnected  = "udp-connected"
	answerMaxSize = 512
)

// Server is one pod's servers: every port answers HTTP on TCP and echoes on
// UDP, both with the pod's name.
type Server struct {
	Name  string
	Addrs []netip.Addr
	Ports []uint16
}

// Load describes one kind of request. Every request opens a socket of its own.
type Load struct {
	Network string
	Target  netip.AddrPort
	Within  time.Duration // of one request; 0 for 10 s
}

// requestLimit bounds one request. On this network an answer takes well under
// a millisecond; a packet that is lost is noticed also by who waits for long, for a
// machine may stand still for a moment.
const requestLimit = 10 * time.Second

func (l Load) limit() time.Duration { return cmp.Or(l.Within, requestLimit) }

// Counts is what became of a number of requests.
type Counts struct {
	Requests  int
	By        map[string]int // answers by answering pod
	Failures  map[string]int // failed requests by error
	WrongPeer map[string]int // answers whose visible peer was not the target
}

// Failed is the number of failed requests.
func (c Counts) Failed() int {
	n := 0
	for _, k := range c.Failures {
		n += k
	}
	return n
}

func newCounts() Counts {
	return Counts{By: map[string]int{}, Failures: map[string]int{}, WrongPeer: map[string]int{}}
}

func (c *Counts) add(peer string, target, answer string, err error) {
	c.Requests++
	switch {
	case err != nil:
		c.Failures[err.Error()]++
	case peer != target:
		c.WrongPeer[peer]++
		fallthrough
	default:
		c.By[answer]++
	}
}

func (c Counts) clone() Counts {
	c.By, c.Failures, c.WrongPeer = maps.Clone(c.By), maps.Clone(c.Failures), maps.Clone(c.WrongPeer)
	return c
}

type request struct {
	Op     string // add, remove, burst, together, begin, take, end, hold, again, drop
	Server Server
	Load   Load
	Count  int
	ID     int
}

type reply struct {
	Error  string
	Counts Counts
}
