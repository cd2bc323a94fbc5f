// Command clustermesh is the operator's tool: it issues certificates, asks the
// agent of a node what it sees and does, and demonstrates a mesh on one machine.
//
// Exit codes: 0 done, 1 failed, 2 used wrongly.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the default action is back, so a second one ends
	// even a command that hangs.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
