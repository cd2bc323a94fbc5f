//go:build !linux

package main

// children are further commands of this test's binary.
func children() map[string]func() { return nil }
