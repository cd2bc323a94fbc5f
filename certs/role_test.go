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

func FuzzParseRole(f *testing.F) {
	for _, seed := range []string{"remote", "remote-east", "local-west", "local-", "admin-x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, cn string) {
		role, err := ParseRole(cn)
		if err == nil && role.CommonName() != cn {
			t.Fatalf("%q became %+v, which is %q", cn, role, role.CommonName())
		}
		if err == nil && role.Kind == Local && role.Cluster == "" {
			t.Fatalf("%q is local to no cluster", cn)
		}
	})
}

func FuzzParseCerts(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := parseCerts(data)
		if (err == nil) != (len(certs) > 0) {
			t.Fatalf("%d certificates with error %v", len(certs), err)
		}
	})
}
