// Package api is the apiserver's local gRPC API, which the clustermesh command
// speaks over a unix socket. The Go code is generated from apiserver.proto.
package api

//go:generate protoc --plugin=protoc-gen-go=../../bin/protoc-gen-go --plugin=protoc-gen-go-grpc=../../bin/protoc-gen-go-grpc --proto_path=../.. --go_out=../.. --go_opt=paths=source_relative --go-grpc_out=../.. --go-grpc_opt=paths=source_relative apiserver/api/apiserver.proto
