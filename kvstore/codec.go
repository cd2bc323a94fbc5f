package kvstore

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// codec is gRPC's protobuf codec, except that it looks at a reply before
// building it: a message within the size limit can still be made of a million
// empty keys or events, each of which costs a hundred times its bytes.
type codec struct{}

// minElementBytes is below what any key or event takes on the wire: its own and
// its value's headers, a key and a revision. Where there are many of them keys are
// longer: all that is read begins with the name of a subtree.
const (
	minElementBytes = 8
	minOfMany       = 20
	manyElements    = 1000
)

// The field numbers of repeated elements in etcd's rpc.proto.
const (
	rangeResponseKVs    protowire.Number = 2
	watchResponseEvents protowire.Number = 11
)

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	return encoding.GetCodecV2("proto").Marshal(v)
}

// Name implements encoding.CodecV2.
func (codec) Name() string { return "proto" }

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	message, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("decode reply: %T is not a protobuf message", v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	raw := buffer.ReadOnlyData()
	if err := checkElements(raw, message); err != nil {
		return fmt.Errorf("decode reply: %w", err)
	}
	return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, message)
}

func checkElements(raw []byte, message proto.Message) error {
	field := protowire.Number(0)
	switch message.(type) {
	case *etcdserverpb.RangeResponse:
		field = rangeResponseKVs
	case *etcdserverpb.WatchResponse:
		field = watchResponseEvents
	default:
		return nil
	}
	n, err := countField(raw, field)
	if err == nil && (n*minElementBytes > len(raw) || n > manyElements && n*minOfMany > len(raw)) {
		err = fmt.Errorf("%d elements in %d bytes; no store sends such", n, len(raw))
	}
	return err
}

func countField(raw []byte, field protowire.Number) (count int, err error) {
	for len(raw) > 0 {
		number, _, n := protowire.ConsumeField(raw)
		if n < 0 {
			return 0, errors.Join(errors.New("malformed message"), protowire.ParseError(n))
		}
		if number == field {
			count++
		}
		raw = raw[n:]
	}
	return count, nil
}
