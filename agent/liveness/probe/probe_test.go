package probe_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/liveness/probe"
)

// TestAcceptanceAndRefusalAreAnswers: whoever listens sees the connection end
// without a byte, and a closed port proves the path as well.
func TestAcceptanceAndRefusalAreAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := netip.MustParseAddrPort(l.Addr().String())
	read := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			read <- -1
			return
		}
		defer c.Close()
		n, _ := c.Read(make([]byte, 1))
		read <- n
	}()
	if rtt, got := probe.Connect(t.Context(), target); got != probe.Answered || rtt <= 0 || rtt > probe.Limit {
		t.Errorf("an open port: %v after %v", got, rtt)
	}
	if n := <-read; n != 0 {
		t.Errorf("the listener read %d bytes", n)
	}
	l.Close()
	if _, got := probe.Connect(t.Context(), target); got != probe.Answered {
		t.Errorf("a closed port: %v", got)
	}
}

// TestSilenceFails fills the queue of a listener that accepts nothing, after
// which the kernel drops what comes.
func TestSilenceFails(t *testing.T) {
	target, full := silent(t)
	begin := time.Now()
	if rtt, got := probe.Connect(t.Context(), target); got != probe.Failed || rtt < probe.Limit/2 {
		t.Errorf("%v after %v with %d connections before it", got, rtt, full)
	}
	if took := time.Since(begin); took > 10*probe.Limit {
		t.Errorf("took %v", took)
	}
}

// TestWhatCannotBeSentProvesNothing: no word of the target was heard.
func TestWhatCannotBeSentProvesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, target := range map[string]netip.AddrPort{
		"cancelled":        netip.MustParseAddrPort("127.0.0.1:1"),
		"not a target":     {},
		"no scope to send": netip.MustParseAddrPort("[fe80::1%nowhere]:1"),
	} {
		use := ctx
		if name != "cancelled" {
			use = t.Context()
		}
		if _, got := probe.Connect(use, target); got != probe.Untold {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// BenchmarkConnect is what a probe that is answered at once costs both sides.
func BenchmarkConnect(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	defer l.Close()
	target := netip.MustParseAddrPort(l.Addr().String())
	for b.Loop() {
		if _, got := probe.Connect(b.Context(), target); got != probe.Answered {
			b.Fatal(got)
		}
	}
}
