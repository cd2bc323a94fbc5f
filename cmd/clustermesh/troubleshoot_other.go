//go:build !linux

package main

// diskFinding does not look.
func diskFinding(flag, dir string) findingView {
	return findingView{Group: "disk", Check: "disk" + flag[1:], Title: "the disk of " + flag + " has room", Outcome: "skip", Evidence: dir + ": not looked at"}
}

// kernelFindings has no kernel to look at.
func kernelFindings(string, string) ([]findingView, error) { return nil, errNotHere }
