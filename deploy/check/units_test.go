package check

import (
	"debug/elf"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const systemdDir = "../systemd"

// unit reads a unit's settings; one that is given several times keeps the last.
func unit(t *testing.T, name string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(readFile(t, filepath.Join(systemdDir, name))) {
		line = strings.TrimSpace(line)
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			out[key] = value
		}
	}
	return out
}

// commandLine is a unit's command with what systemd puts in its place.
func commandLine(t *testing.T, name string) (program string, args []string) {
	t.Helper()
	devices := "--device=eth0=snat --device=veth*"
	if !strings.Contains(readFile(t, systemdDir+"/clustermesh-agent-devices.service"), "DEVICES="+devices) {
		t.Error("the example of DEVICES is another one")
	}
	dir, err := filepath.Abs(systemdDir)
	must(t, err)
	text := strings.NewReplacer("/etc/clustermesh/", dir+"/", "%H", "node-1", "$DEVICES", devices).Replace(unit(t, name)["ExecStart"])
	fields := strings.Fields(text)
	return filepath.Base(fields[0]), fields[1:]
}

// checkUnits has the commands judge the units' command lines with the files of
// settings that lie beside them, and compares rights with those of the pods.
func checkUnits(t *testing.T, bin string) {
	rights := map[string]string{
		"clustermesh-apiserver.service":     "",
		"clustermesh-agent.service":         "CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
		"clustermesh-agent-devices.service": "CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
		"clustermesh-agent-sockets.service": "CAP_BPF CAP_NET_ADMIN CAP_PERFMON CAP_SYS_ADMIN CAP_SYS_PTRACE",
	}
	files, err := filepath.Glob(systemdDir + "/*.service")
	must(t, err)
	if len(files) != len(rights) {
		t.Errorf("the units are %v", files)
	}
	for name, want := range rights {
		program, args := commandLine(t, name)
		requireTaken(t, filepath.Join(bin, program), nil, args)
		u := unit(t, name)
		if got, said := u["CapabilityBoundingSet"]; !said || got != want || u["NoNewPrivileges"] != "yes" || u["ProtectSystem"] != "strict" {
			t.Errorf("%s has capabilities %q, want %q", name, got, want)
		}
	}
	if user := unit(t, "clustermesh-apiserver.service")["User"]; !strings.Contains(readFile(t, systemdDir+"/clustermesh.sysusers"), "u "+user+" ") {
		t.Errorf("nobody makes the user %q", user)
	}
}

// stage is a stage of a Dockerfile.
type stage struct {
	from         string
	instructions map[string]string // the last of each
}

func stages(t *testing.T, path string) map[string]stage {
	t.Helper()
	out, last := map[string]stage{}, ""
	for line := range strings.Lines(readFile(t, path)) {
		line = strings.TrimSpace(line)
		if m := regexp.MustCompile(`^FROM (\S+) AS (\S+)$`).FindStringSubmatch(line); m != nil {
			last = m[2]
			out[last] = stage{from: m[1], instructions: map[string]string{}}
			continue
		}
		if word, rest, ok := strings.Cut(line, " "); ok && !strings.HasPrefix(line, "#") {
			out[last].instructions[word] = rest
		}
	}
	return out
}

// TestImages: what the charts' pods expect of the images is in the Dockerfile.
func TestImages(t *testing.T) {
	all := stages(t, "../docker/Dockerfile")
	if len(all) != 3 {
		t.Fatalf("the stages are %v", all)
	}
	for target, user := range map[string]string{"apiserver": "65532:65532", "agent": "0:0"} {
		s := all[target]
		program := "/usr/local/bin/clustermesh-" + target
		if s.from != "scratch" || s.instructions["USER"] != user || s.instructions["ENTRYPOINT"] != `["`+program+`"]` {
			t.Errorf("%s is %+v", target, s)
		}
		if !strings.Contains(s.instructions["COPY"], "/out/clustermesh-"+target+" ") {
			t.Errorf("%s copies %s", target, s.instructions["COPY"])
		}
		if pod := pods(t, objects(t, "default"))["clustermesh-"+target]; !strings.HasPrefix(pod.Containers[0].Image, "clustermesh-"+target+":") {
			t.Errorf("%s runs %s", target, pod.Containers[0].Image)
		}
	}
	words := strings.Fields(all["build"].instructions["RUN"])
	if words[0] != "CGO_ENABLED=0" || !slices.Contains(words, "-trimpath") {
		t.Errorf("built by %v", words)
	}
	for _, w := range words {
		if dir, ok := strings.CutPrefix(w, "./cmd/"); ok {
			_, err := os.Stat(filepath.Join(root, "cmd", dir, "main.go"))
			must(t, err)
		}
	}
}

// checkStatic: an image of nothing else can run the programs.
func checkStatic(t *testing.T, bin string) {
	programs, err := filepath.Glob(filepath.Join(bin, "*"))
	must(t, err)
	if len(programs) != 3 {
		t.Errorf("the programs are %v", programs)
	}
	for _, p := range programs {
		f, err := elf.Open(p)
		must(t, err)
		for _, segment := range f.Progs {
			if segment.Type == elf.PT_INTERP {
				t.Errorf("%s needs a dynamic linker", filepath.Base(p))
			}
		}
		must(t, f.Close())
	}
}
