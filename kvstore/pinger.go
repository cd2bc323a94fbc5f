package kvstore

import (
	"context"
	"fmt"
	"time"
)

// probeKey is the key a sign of life is asked for. Every Cilium-compatible
// server lets clients read it; it need not exist.
const probeKey = "cilium/.heartbeat"

// probe makes one small request. With TLS 1.3 a client learns only here that
// the server refuses its certificate.
func (c *Conn) probe(ctx context.Context) error {
	_, err := c.Range(ctx, probeKey, "", 1, 0)
	return err
}

func (c *Conn) probeStage() DialStage {
	if tlsStage(c.wire.cause(nil)) == StageRefused {
		return StageRefused
	}
	return StageProbe
}

// startPinger watches over the connection: gRPC's own keepalive may not ping
// more often than every 10 s, and servers end connections that ping more often
// than they like; a request is always in order.
func (c *Conn) startPinger() {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.pinger = make(chan struct{})
	go func() {
		defer close(c.pinger)
		c.end(c.watchOver(ctx))
	}()
}

// watchOver returns why the connection is over.
func (c *Conn) watchOver(ctx context.Context) error {
	for {
		wait := max(c.cfg.Keepalive-c.wire.silence(), time.Millisecond)
		select {
		case <-ctx.Done():
			return errClosed
		case <-c.wire.broken:
			return fmt.Errorf("connection broke: %w", c.wire.failure)
		case <-time.After(wait):
		}
		if c.wire.silence() < c.cfg.Keepalive {
			continue
		}
		if err := c.ping(ctx); err != nil {
			return err
		}
	}
}

// ping asks for a sign of life. Any byte received is one.
func (c *Conn) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.KeepaliveTimeout)
	defer cancel()
	before := c.wire.silence()
	err := c.probe(ctx)
	if err == nil || c.wire.silence() < before {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("server gave no sign of life for %s", c.cfg.Keepalive+c.cfg.KeepaliveTimeout)
	}
	return err
}
