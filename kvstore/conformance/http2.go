package conformance

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

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
	flagEndStream  = 0x1
	flagEndHeaders = 0x4

	maxFrame = 1 << 14 // the default of SETTINGS_MAX_FRAME_SIZE
)

// preface is what a client sends first.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// newHTTP2 begins the protocol on a connection. Deadlines are the caller's.
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
			fields = append(appendLength(fields, len(text)), text...)
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

// appendLength writes a length as an HPACK integer of 7 bits (RFC 7541 section
// 5.1) whose first bit says that no Huffman code follows.
func appendLength(b []byte, n int) []byte {
	const most = 1<<7 - 1
	if n < most {
		return append(b, byte(n))
	}
	return binary.AppendUvarint(append(b, most), uint64(n-most))
}

// ping sends a ping and waits for its answer.
func (h *http2) ping(id uint64) error {
	sent := h.send(framePing, 0, 0, binary.BigEndian.AppendUint64(nil, id))
	err := h.until(func(f frame) bool {
		return f.kind == framePing && f.flags&flagAck != 0 && len(f.payload) == 8 && binary.BigEndian.Uint64(f.payload) == id
	})
	if err != nil {
		return errors.Join(err, sent)
	}
	return nil
}

// called waits until the call has brought a message, or has ended.
func (h *http2) called() error {
	return h.until(func(f frame) bool {
		return f.kind == frameData || f.kind == frameReset || f.kind == frameHeaders && f.flags&flagEndStream != 0
	})
}

// until reads up to the frame wanted.
func (h *http2) until(wanted func(frame) bool) error {
	for {
		f, err := h.receive()
		switch {
		case err != nil:
			return err
		case wanted(f):
			return nil
		case f.kind == frameGoAway && len(f.payload) >= 8:
			return fmt.Errorf("the server ends the connection: %q (code %d)", f.payload[8:], binary.BigEndian.Uint32(f.payload[4:]))
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
