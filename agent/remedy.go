package agent

import "strings"

// remedyOf says what to do about an error. Errors of ours end in it, behind a
// semicolon; for others there is the command that looks closer.
func remedyOf(text string) string {
	if text == "" {
		return ""
	}
	last := text[strings.LastIndexByte(text, '\n')+1:]
	if i := strings.LastIndex(last, "; "); i >= 0 {
		return last[i+len("; "):]
	}
	return "see which point fails by clustermesh troubleshoot on this node, and the log of the cluster's apiserver"
}
