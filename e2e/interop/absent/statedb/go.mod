module github.com/cilium/statedb

go 1.26.0

require (
	github.com/cilium/hive v1.0.4
	github.com/cilium/stream v0.0.1
	golang.org/x/time v0.15.0
)
