package identity

import (
	"crypto/sha256"
	"encoding/binary"
)

// sequence walks all numbers of a range in an order that depends on the
// labels alone: double hashing (Knuth, TAOCP vol. 3, 6.4, algorithm D). The
// step shares no factor with the size, so every number is visited once.
type sequence struct {
	first, size uint64
	at, step    uint64
}

func newSequence(labels string, first, last uint32) sequence {
	sum := sha256.Sum256([]byte(labels))
	size := uint64(last) - uint64(first) + 1
	s := sequence{first: uint64(first), size: size}
	s.at = binary.BigEndian.Uint64(sum[:8]) % size
	s.step = coprime(1+binary.BigEndian.Uint64(sum[8:16])%size, size)
	return s
}

// next returns the current candidate and moves on.
func (s *sequence) next() uint32 {
	number := uint32(s.first + s.at)
	s.at = (s.at + s.step) % s.size
	return number
}

// coprime returns the smallest number from step on that shares no factor with
// size.
func coprime(step, size uint64) uint64 {
	for gcd(step, size) != 1 {
		step++
	}
	return step
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
