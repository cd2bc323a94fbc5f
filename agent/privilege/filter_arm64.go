package privilege

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// deniedHere lists what only this architecture has.
func deniedHere() []uint32 { return nil }
