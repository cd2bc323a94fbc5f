//go:build race

package server

// raceEnabled says that figures of memory mean nothing.
const raceEnabled = true
