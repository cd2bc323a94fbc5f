package server

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/kvstore/report"
)

// frame is a reply that is already encoded. Its buffers may be shared with
// other frames and are never changed.
type frame struct{ parts mem.BufferSlice }

// codec is the gateway's protobuf codec: it passes frames through and encodes
// and decodes all else.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *frame:
		return m.parts, nil
	case proto.Message:
		b, err := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("encode reply of type %T: not a message", v)
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if b, ok := v.(bounded); ok {
		if data.Len() > report.MaxBytes {
			return fmt.Errorf("decode report: %d bytes, at most %d", data.Len(), report.MaxBytes)
		}
		v = b.Message
	}
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("decode request into %T: not a message", v)
	}
	return proto.Unmarshal(data.Materialize(), m)
}
