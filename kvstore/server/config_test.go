package server

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

func TestConfigIsValidated(t *testing.T) {
	good := Config{Cluster: "east", DataDir: "d", Listen: ":2379", TLS: &tls.Config{ClientCAs: x509.NewCertPool()}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"cluster name":         func(c *Config) { c.Cluster = "East" },
		"data directory":       func(c *Config) { c.DataDir = "" },
		"listen address":       func(c *Config) { c.Listen = "2379" },
		"quota":                func(c *Config) { c.QuotaBytes = 1 << 20 },
		"client CAs":           func(c *Config) { c.TLS = &tls.Config{} },
		"together with TLS":    func(c *Config) { c.PlainTextName = "remote" },
		"not a loopback":       func(c *Config) { c.TLS, c.PlainTextName = nil, "remote" },
		"plain text name":      func(c *Config) { c.TLS, c.Listen = nil, "127.0.0.1:0" },
		"negative":             func(c *Config) { c.Limits.SendTimeout = -time.Second },
		"data directory \"\" ": func(c *Config) { *c = Config{} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error on %s, got %v", want, err)
		}
		if _, err := New(c); err == nil {
			t.Errorf("New accepts a bad %s", want)
		}
	}
	err := Config{Listen: "x"}.Validate()
	for _, part := range []string{"cluster name", "data directory", "listen address"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in %v", part, err)
		}
	}
}
