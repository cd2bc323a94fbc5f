// Package pod plays the pods of a node: servers that answer who they are, and
// clients that connect and count. All pods of a node live in one child process
// that runs in the node's network namespace and cgroup; the test talks to it
// through [Host], one JSON line per call.
package pod
