package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

const (
	pemCert = "CERTIFICATE"
	pemKey  = "EC PRIVATE KEY"
)

var errNoCertificate = errors.New("it holds no PEM certificate")

// parseCerts reads every certificate of a PEM file. Anything that is not a
// certificate is an error, and so is a block that is cut off: a file caught half
// written must not pass as a shorter one.
func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		cert, tail, err := nextCert(rest)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(certs)+1, err)
		}
		certs, rest = append(certs, cert), tail
	}
	if len(certs) == 0 {
		return nil, errNoCertificate
	}
	return certs, nil
}

func nextCert(data []byte) (*x509.Certificate, []byte, error) {
	block, tail := pem.Decode(data)
	switch {
	case block == nil, skipped(data, tail):
		return nil, nil, errors.New("no complete PEM block; the file may be cut off or of another format")
	case block.Type != pemCert:
		return nil, nil, fmt.Errorf("it is a %s and not a %s", block.Type, pemCert)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	return cert, tail, err
}

// skipped reports whether [pem.Decode], which read data up to tail, left out a
// damaged block before the one that it found. Text between blocks, as openssl
// writes it, is none.
func skipped(data, tail []byte) bool {
	return bytes.Count(data[:len(data)-len(tail)], []byte("-----BEGIN")) != 1
}

func readCerts(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found, err := parseCerts(data)
	if err != nil {
		return nil, fmt.Errorf("read certificates of %s: %w", path, err)
	}
	return found, nil
}

func encodeCerts(list []*x509.Certificate) []byte {
	var out []byte
	for _, c := range list {
		out = append(out, encodeCert(c.Raw)...)
	}
	return out
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}
