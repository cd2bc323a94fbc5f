// Package schemapb is the protobuf form of an endpoint slice on the wire, as
// the code generator makes it from endpointslice.proto. It states the format
// for other programs and is what the tests of kvstore/schema measure its own
// codec by; that one reads the wire directly, within bounds and without
// reflection.
package schemapb

//go:generate protoc --plugin=protoc-gen-go=../../../bin/protoc-gen-go --proto_path=. --go_out=. --go_opt=paths=source_relative endpointslice.proto
