// Package sockets ends connections to backends that are withdrawn.
//
// It is a process of its own beside the agent, because that takes rights that
// the agent has given up: to enter the network namespaces of pods and to destroy
// sockets there. It reads nothing but the pinned maps and the kernel's lists of
// sockets and namespaces. What it goes by is a state and no event: which backends
// each frontend has now, and which sockets the programs have sent to others. So it
// makes no difference which of the two processes was away when a backend went.
//
// A backend is withdrawn from a frontend when its cluster lists it no more, or
// when its whole cluster was given up, for being out of contact or dead; not when
// others are merely preferred. Connected UDP sockets of a backend that is listed
// no more are ended in any case: they pass no hook again, and would send into
// nothing for ever. For everything else the service's policy decides.
package sockets
