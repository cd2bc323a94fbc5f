package server

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// rawHTTP speaks HTTP/2 (RFC 9113) frame by frame, to say what a gRPC client
// would not.
type rawHTTP struct {
	net.Conn
	t  testing.TB
	in *bufio.Reader
}

const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	settingInitialWindow = 0x4

	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
)

func (w *world) rawHTTP(cfg *tls.Config) *rawHTTP {
	w.t.Helper()
	return w.rawHTTPBy(&net.Dialer{}, cfg)
}

func (w *world) rawHTTPBy(d *net.Dialer, cfg *tls.Config) *rawHTTP {
	w.t.Helper()
	c, err := tls.DialWithDialer(d, "tcp", w.s.Addr().String(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	h := &rawHTTP{Conn: c, t: w.t, in: bufio.NewReader(c)}
	if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		w.t.Fatal(err)
	}
	if err := h.frame(frameSettings, 0, 0, nil); err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (h *rawHTTP) frame(kind, flags byte, stream uint32, payload []byte) error {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	_, err := h.Write(append(b, payload...))
	return err
}

// literals encodes header fields without table and Huffman code (RFC 7541
// section 6.2.2).
func literals(fields ...string) []byte {
	var b []byte
	for i, text := range fields {
		if i%2 == 0 {
			b = append(b, 0)
		}
		const most = 1<<7 - 1
		if len(text) < most {
			b = append(b, byte(len(text)))
		} else {
			b = binary.AppendUvarint(append(b, most), uint64(len(text)-most))
		}
		b = append(b, text...)
	}
	return b
}

// request is the header fields of a gRPC call; path may be left out with "".
func request(path string, more ...string) []byte {
	fields := []string{":method", "POST", ":scheme", "https"}
	if path != "" {
		fields = append(fields, ":path", path)
	}
	fields = append(fields, ":authority", "x", "content-type", "application/grpc", "te", "trailers")
	return literals(append(fields, more...)...)
}

// message frames a gRPC message.
func message(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// next reads a frame.
func (h *rawHTTP) next() (kind, flags byte, stream uint32, payload []byte, err error) {
	var head [9]byte
	if _, err := io.ReadFull(h.in, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	payload = make([]byte, binary.BigEndian.Uint32(head[:4])>>8)
	_, err = io.ReadFull(h.in, payload)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload, err
}

// outcome reads until a stream ends, or the connection does.
func (h *rawHTTP) outcome(stream uint32) string {
	for {
		kind, flags, at, payload, err := h.next()
		switch {
		case err != nil:
			return "closed"
		case kind == frameGoAway:
			return "go away"
		case kind == frameData && len(payload) > 0 && at == stream:
			return "data"
		case kind == frameReset && at == stream:
			return "reset"
		case kind == frameHeaders && flags&flagEndStream != 0 && at == stream:
			return "refused"
		case kind == frameSettings && flags&flagAck == 0:
			_ = h.frame(frameSettings, flagAck, 0, nil)
		}
	}
}
