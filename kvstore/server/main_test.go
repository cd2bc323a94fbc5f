package server

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(brokenDisk) != "" {
		os.Exit(m.Run()) // parts of an etcd with a full disk never end
	}
	goleak.VerifyTestMain(m)
}
