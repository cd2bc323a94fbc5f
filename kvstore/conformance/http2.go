package conformance

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/protobuf/proto"
)

// http2 is the little of HTTP/2 (RFC 9113) that shows how a server takes pings:
// gRPC's own client does not ping more often than every 10 s and does not tell
// of answers.
type http2 struct {
	net.Conn
	in *bufio.Reader
}

// The frame types and flags that matter here.
const (
	frameData     = 0x0
	frameHeaders  = 0x1
	frameReset    = 0x3
	frameSettings = 0x4
	framePing     = 0x6
	frameGoAway   = 0x7

	flagAck        = 0x1
	flagEndHeaders = 0x4

	maxFrame = 1 << 14 // the default of SETTINGS_MAX_FRAME_SIZE
)

// preface is what a client sends first.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// newHTTP2 begins the protocol on a connection, until a deadline.
func newHTTP2(conn net.Conn) (*http2, error) {
	h := &http2{Conn: conn, in: bufio.NewReader(conn)}
	if _, err := io.WriteString(conn, preface); err != nil {
		return nil, err
	}
	return h, h.send(frameSettings, 0, 0, nil)
}

func (h *http2) send(kind, flags byte, stream uint32, payload []byte) error {
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	frame = append(frame, flags)
	frame = binary.BigEndian.AppendUint32(frame, stream)
	_, err := h.Write(append(frame, payload...))
	return err
}

type frame struct {
	kind, flags byte
	payload     []byte
}

func (h *http2) receive() (frame, error) {
	var head [9]byte
	if _, err := io.ReadFull(h.in, head[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(head[:4]) >> 8
	if size > maxFrame {
		return frame{}, fmt.Errorf("a frame of %d bytes, more than allowed", size)
	}
	f := frame{kind: head[3], flags: head[4], payload: make([]byte, size)}
	_, err := io.ReadFull(h.in, f.payload)
	return f, err
}

// call opens a gRPC call and sends its first message. Header fields are HPACK
// literals (RFC 7541 section 6.2.2), which need no table.
func (h *http2) call(authority, path string, message proto.Message) error {
	var fields []byte
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", path}, {":authority", authority},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		fields = append(fields, 0)
		for _, text := range f {
			fields = append(append(fields, byte(len(text))), text...) // all are below 127 bytes, or cut
		}
	}
	if err := h.send(frameHeaders, flagEndHeaders, 1, fields); err != nil {
		return err
	}
	body, err := proto.Marshal(message)
	if err != nil {
		return err
	}
	return h.send(frameData, 0, 1, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...))
}

// ping sends a ping and waits for its answer.
func (h *http2) ping(id uint64, timeout time.Duration) error {
	if err := h.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	sent := h.send(framePing, 0, 0, binary.BigEndian.AppendUint64(nil, id))
	for {
		f, err := h.receive()
		if err != nil {
			return errors.Join(err, sent)
		}
		switch {
		case f.kind == framePing && f.flags&flagAck != 0 && len(f.payload) == 8 && binary.BigEndian.Uint64(f.payload) == id:
			return nil
		case f.kind == frameGoAway && len(f.payload) >= 8:
			return fmt.Errorf("the server ends the connection: %q (code %d)", f.payload[8:], binary.BigEndian.Uint32(f.payload[4:]))
		case f.kind == frameReset && len(f.payload) == 4:
			return fmt.Errorf("the server ends the watch (code %d)", binary.BigEndian.Uint32(f.payload))
		}
		if err := h.answer(f); err != nil {
			return err
		}
	}
}

// answer acknowledges what must be.
func (h *http2) answer(f frame) error {
	switch {
	case f.flags&flagAck != 0:
		return nil
	case f.kind == frameSettings:
		return h.send(frameSettings, flagAck, 0, nil)
	case f.kind == framePing:
		return h.send(framePing, flagAck, 0, f.payload)
	}
	return nil
}
