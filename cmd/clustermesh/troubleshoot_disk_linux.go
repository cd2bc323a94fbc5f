package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// littleRoom is what a disk should have left: what the store's log takes at
// once.
const littleRoom = 128 << 20

// diskFinding looks at the disk of a directory of ours.
func diskFinding(flag, dir string) findingView {
	v := findingView{Group: "disk", Check: "disk" + flag[1:], Title: "the disk of " + flag + " has room", Outcome: outcomePass}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		v.Outcome, v.Cause, v.Evidence = outcomeFail, "the directory cannot be looked at", fmt.Sprintf("%s: %v", dir, err)
		v.Remedy = "create it, or correct " + flag
		return v
	}
	free, size := s.Bavail*uint64(s.Bsize), s.Blocks*uint64(s.Bsize)
	v.Evidence = fmt.Sprintf("%s: %d MiB of %d MiB are free", dir, free>>20, size>>20)
	remedy := "free space on the disk of " + dir + " or enlarge it; the store is rebuilt by itself then"
	switch {
	case s.Files > 0 && s.Ffree == 0:
		v.Outcome, v.Cause, v.Remedy = outcomeFail, "disk full: no inode is free", remedy
	case free < 1<<20:
		v.Outcome, v.Cause, v.Remedy = outcomeFail, "disk full", remedy
	case free < littleRoom && free < size/10:
		v.Outcome, v.Cause, v.Remedy = outcomeNote, "the disk is nearly full", remedy
	}
	return v
}
