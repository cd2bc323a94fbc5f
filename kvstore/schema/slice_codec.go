package schema

import (
	"bytes"
	"strconv"

	"github.com/klauspost/compress/zstd"
)

// Bounds on what a compressed value may grow to, besides [Limits].
const (
	// maxSliceBytes is Cilium's own limit.
	maxSliceBytes = 16 << 20
	// maxRatio is above what the repetition in a large slice yields: 1,000
	// endpoints with node names and zones shrink to a tenth or thirtieth. The
	// texts of a message are copied from it, and both together stay below a
	// hundred times the value.
	maxRatio = 40
	// freeBytes may come out of any value, so that no ratio need be legal for
	// small ones: 1,000 endpoints have 150 KiB. Buffers of this size are kept.
	freeBytes = 256 << 10
)

// SliceCodec encodes and decodes [EndpointSlice] values: zstd frames (RFC 8878)
// of protobuf messages (schemapb/endpointslice.proto). It keeps the compressor's
// and decompressor's state and their buffers from call to call: 0.5 to 1 MiB once
// it has decoded, 2 to 4 MiB once it has encoded too; so share one among many
// prefixes. It starts no goroutine. The zero value is ready; it must not be
// copied, and is for one goroutine at a time.
type SliceCodec struct {
	decoder *zstd.Decoder
	encoder *zstd.Encoder
	message []byte // the last uncompressed message
	frame   []byte // the last frame written
}

// Encode returns the value of the slice: map entries sorted by key, members
// that are not optional in Cilium always written, lists in their own order.
// Equal slices have equal bytes. The slice is written as it is, see
// [EndpointSlice.Validate]. The result is the caller's.
func (c *SliceCodec) Encode(s *EndpointSlice) []byte {
	if c.encoder == nil {
		c.encoder = newEncoder()
	}
	c.message = appendSlice(c.message[:0], s)
	c.frame = c.encoder.EncodeAll(c.message, c.frame[:0])
	value := bytes.Clone(c.frame)
	c.message, c.frame = keep(c.message), keep(c.frame)
	return value
}

// Decode decodes the endpoint slice at key, which lies below the prefix of
// [KindEndpointSlice] for src. The entry must name src's cluster and id and the
// namespace and name in its key; every address must be of the announced family,
// plainly: none has a zone or is an IPv4 address in IPv6 form. The error is an
// *[Error].
//
// The result is the caller's, except that equal zone hints of different
// endpoints may be one slice: they must not be modified.
func (c *SliceCodec) Decode(src Source, key string, value []byte, l Limits) (*EndpointSlice, error) {
	namespace, name, err := ParseServiceKey(KindEndpointSlice, src.Cluster, src.Cached, key)
	if err != nil {
		return nil, err
	}
	message, failed := c.decompress(key, value, l)
	if failed != nil {
		return nil, failed
	}
	return decodeSlice(src, namespace, name, key, message, l)
}

// decompress returns what the frame holds; it is valid until the next call.
func (c *SliceCodec) decompress(key string, value []byte, l Limits) ([]byte, *Error) {
	if len(value) > l.MaxValueBytes {
		return nil, tooMany(key, "value bytes", len(value), l.MaxValueBytes)
	}
	size, err := frameSize(key, value, decodedLimit(len(value), l))
	if err != nil {
		return nil, err
	}
	if c.decoder == nil {
		c.decoder = newDecoder()
	}
	buffer := c.message[:0]
	if cap(buffer) < size {
		buffer = make([]byte, 0, size)
	}
	c.message = keep(buffer)
	message, failed := c.decoder.DecodeAll(value, buffer[:0:size])
	if failed != nil {
		return nil, newError(key, wholeValue, excerpt(value), "must be a zstd frame of at most "+decimal(uint32(size))+" bytes: "+failed.Error())
	}
	return message, nil
}

// decodedLimit returns how large a value of n bytes may become.
func decodedLimit(n int, l Limits) int {
	return max(0, min(l.MaxDecodedBytes, maxSliceBytes, max(freeBytes, maxRatio*n)))
}

// frameSize returns the size of the buffer for a frame's content: what the
// frame announces, or the limit if it does not.
func frameSize(key string, value []byte, limit int) (int, *Error) {
	var h zstd.Header
	if err := h.Decode(value); err != nil || h.Skippable {
		return 0, newError(key, wholeValue, excerpt(value), "must be a zstd frame of a protobuf message, not JSON")
	}
	if !h.HasFCS {
		return limit, nil
	}
	if h.FrameContentSize > uint64(limit) {
		return 0, newError(key, "decoded bytes", strconv.FormatUint(h.FrameContentSize, 10),
			"at most "+decimal(uint32(limit))+" are accepted from a value of "+decimal(uint32(len(value)))+" bytes; split the slice")
	}
	return int(h.FrameContentSize), nil
}

// keep returns a buffer for the next call, unless it is unusually large.
func keep(b []byte) []byte {
	if cap(b) > 2*freeBytes {
		return nil
	}
	return b
}

// newDecoder bounds a frame's window by what it may hold at all, and its
// content by the capacity of the buffer it is given.
func newDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxSliceBytes),
		zstd.WithDecoderMaxWindow(maxSliceBytes), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("make a zstd decoder of constant options: " + err.Error())
	}
	return d
}

func newEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		panic("make a zstd encoder of constant options: " + err.Error())
	}
	return e
}
