package bpf

func runLoader(pinDir, cgroup string) error { return nil }
