package certs

import (
	"errors"
	"testing"
)

func TestParseRole(t *testing.T) {
	good := map[string]Role{
		"remote":           {Kind: Remote},
		"remote-east":      {Kind: Remote, Cluster: "east"},
		"remote-a":         {Kind: Remote, Cluster: "a"},
		"remote-east-1":    {Kind: Remote, Cluster: "east-1"},
		"remote-local-x":   {Kind: Remote, Cluster: "local-x"},
		"local-east":       {Kind: Local, Cluster: "east"},
		"local-0123456789": {Kind: Local, Cluster: "0123456789"},
	}
	for cn, want := range good {
		if got, err := ParseRole(cn); err != nil || got != want || got.CommonName() != cn {
			t.Errorf("ParseRole(%q) = %+v, %v; want %+v", cn, got, err, want)
		}
	}
	bad := []string{"", "local", "local-", "remote-", "remote--a", "Remote", "remote-East", "remote-a-", "remote-a b", " remote", "remote ",
		"remote\x00", "remote-a\n", "admin-east", "root", "server-east", "remoteeast", "remote-" + "abcdefghijklmnopqrstuvwxyz0123456", "remote-é", "remote-*"}
	for _, cn := range bad {
		if got, err := ParseRole(cn); !errors.Is(err, ErrNoRole) {
			t.Errorf("ParseRole(%q) = %+v, %v; want ErrNoRole", cn, got, err)
		}
	}
}
