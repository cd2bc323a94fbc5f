package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Run plays the story and cleans up, also when it fails or ctx ends. The report
// covers the steps that were reached.
func Run(ctx context.Context, cfg Config) (report Report, err error) {
	if err := cfg.Validate(); err != nil {
		return report, err
	}
	found, err := preflight(cfg)
	if err != nil {
		return report, err
	}
	start := time.Now()
	s := &story{mesh: mesh{cfg: cfg, found: found}, screen: screen{w: cfg.Out}}
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = errInterrupted // and not what broke because of it
		}
		err = errors.Join(err, s.close())
		s.report.Seconds = time.Since(start).Seconds()
		report = s.report
	}()
	return report, s.play(ctx)
}

var errInterrupted = errors.New("interrupted before the end")

// story is a mesh with a narrator.
type story struct {
	mesh
	screen
	report Report
}

func (s *story) play(ctx context.Context) error {
	scenes := []func(context.Context) error{s.setUp, s.controlPlanes, s.nodes, s.both, s.crash, s.withdraw, s.recover, s.pause}
	for _, scene := range scenes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := scene(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) setUp(context.Context) error {
	s.heading("Two clusters, east and west: a network namespace each, joined by a bridge")
	if err := s.prepare(); err != nil {
		return err
	}
	if err := s.build(); err != nil {
		return err
	}
	for _, c := range s.clusters() {
		s.say("%s: node %s, service %s at %s, backends %s", c.name, c.ip, c.service, c.service.frontend, c.service.podNames())
	}
	s.say("files below are relative to %s; certificates in pki are as \"clustermesh certs\" issues them", s.dir)
	return nil
}

func (s service) podNames() string {
	var names []string
	for _, p := range s.pods {
		names = append(names, fmt.Sprintf("%s (%s)", p.name, p.addr))
	}
	return strings.Join(names, ", ")
}

func (s *story) controlPlanes(ctx context.Context) error {
	s.heading("Each cluster publishes its services")
	for _, c := range s.clusters() {
		s.typed(c.name, program(c.apiserverArgs(s.found.apiserver, s.pki()), s.dir)...)
		if err := s.startApiserver(c); err != nil {
			return err
		}
	}
	for _, c := range s.clusters() {
		if err := s.await(ctx, "the apiserver of "+c.name+" is ready", c.ready(apiserverPort), c.apiserver); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) startApiserver(c *cluster) (err error) {
	c.apiserver, err = spawn(c.node, c.system, s.logs(), "apiserver", c.apiserverArgs(s.found.apiserver, s.pki())...)
	return err
}

// nodes starts an agent per node, which is how traffic learns of the mesh.
func (s *story) nodes(ctx context.Context) error {
	s.heading("Each node listens to all clusters")
	for _, c := range s.clusters() {
		if err := c.startPods(s.cfg.Self, s.logs()); err != nil {
			return err
		}
		args := c.agentArgs(s.found.agent)
		s.typed(c.name, program(args, s.dir, s.found.cgroups)...)
		var err error
		if c.agent, err = spawn(c.node, c.system, s.logs(), "agent", args...); err != nil {
			return err
		}
	}
	for _, c := range s.clusters() {
		if err := s.await(ctx, "the pods of "+c.name+" are up", c.podsUp, c.backends...); err != nil {
			return err
		}
		if err := s.await(ctx, "the agent of "+c.name+" is ready", c.ready(agentPort), c.agent); err != nil {
			return err
		}
	}
	return s.awaitBackends(ctx, s.all())
}

// all is what every node uses when nothing is withdrawn.
func (s *story) all() map[string]int {
	return map[string]int{s.east.name: len(s.east.service.pods), s.west.name: len(s.west.service.pods)}
}

func (s *story) awaitBackends(ctx context.Context, want map[string]int) error {
	for _, c := range s.clusters() {
		if err := s.await(ctx, fmt.Sprintf("the node of %s uses %v", c.name, want), c.uses(want), c.agent); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) both(ctx context.Context) error {
	s.heading("Ten requests from each side, answered by both clusters")
	if err := s.requestAll(ctx, "both", s.all()); err != nil {
		return err
	}
	return s.ask(ctx, s.east, "services", s.east.service.String())
}

func (s *story) crash(ctx context.Context) error {
	s.heading("The control plane of west is killed; nothing moves")
	s.typed(s.west.name, "kill -9", strconv.Itoa(s.west.apiserver.cmd.Process.Pid))
	s.west.apiserver.kill()
	for _, c := range s.clusters() {
		if err := s.await(ctx, "the agent of "+c.name+" notices", c.lost(s.west.name), c.agent); err != nil {
			return err
		}
	}
	if err := s.ask(ctx, s.east, "status"); err != nil {
		return err
	}
	return s.requestAll(ctx, "west control plane dead", s.all())
}

func (s *story) withdraw(ctx context.Context) error {
	s.heading("East withdraws its backends; west answers alone, its control plane still dead")
	s.say("edit %s: endpoints: []", filepath.Join("east", "manifests"))
	if err := s.east.apply(true); err != nil {
		return err
	}
	// West's node hears of east only through east's apiserver, which lives.
	want := map[string]int{s.west.name: len(s.west.service.pods)}
	if err := s.awaitBackends(ctx, want); err != nil {
		return err
	}
	if err := s.requestAll(ctx, "east withdrawn", want); err != nil {
		return err
	}
	return s.ask(ctx, s.east, "services", s.east.service.String())
}

func (s *story) recover(ctx context.Context) error {
	s.heading("West's control plane and east's backends come back")
	if err := s.startApiserver(s.west); err != nil {
		return err
	}
	if err := s.await(ctx, "the apiserver of west is ready again", s.west.ready(apiserverPort), s.west.apiserver); err != nil {
		return err
	}
	if err := s.east.apply(false); err != nil {
		return err
	}
	if err := s.awaitBackends(ctx, s.all()); err != nil {
		return err
	}
	return s.requestAll(ctx, "recovered", s.all())
}

// pause leaves the mesh to the user until he presses Ctrl-C.
func (s *story) pause(ctx context.Context) error {
	if !s.cfg.Pause {
		return nil
	}
	s.heading("The mesh is yours until Ctrl-C")
	for _, c := range s.clusters() {
		s.typed("", "nsenter -n -m -t", strconv.Itoa(c.backends[0].cmd.Process.Pid), "sh -c 'echo $$ >", filepath.Join(c.pods.path, "cgroup.procs"), "&& exec sh'")
		s.typed("", "clustermesh status --api-socket", c.socket())
	}
	<-ctx.Done()
	return nil
}

// requests is the length of one series.
const requests = 10

// requestAll asks from a pod on each side. Exactly the clusters in want must
// answer, and not one request may fail.
func (s *story) requestAll(ctx context.Context, name string, want map[string]int) error {
	for _, c := range s.clusters() {
		url := c.service.url()
		s.typed(c.name+"-pod", "clustermesh demo get", url, "--count", strconv.Itoa(requests))
		replies, err := s.request(ctx, c, url)
		if err != nil {
			return err
		}
		s.bodies(replies)
		step := count(name, c.name, replies)
		s.report.Steps = append(s.report.Steps, step)
		if err := s.check(ctx, c, step, want); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) request(ctx context.Context, c *cluster, url string) ([]reply, error) {
	out, err := output(ctx, c.node, c.pods, s.cfg.Self, "demo", "get", url, "--count", strconv.Itoa(requests))
	if err != nil {
		return nil, err
	}
	var replies []reply
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var r reply
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return replies, nil
		} else if err != nil {
			return nil, fmt.Errorf("read answers: %w", err)
		}
		replies = append(replies, r)
	}
}

// count reads which cluster answered: the first word of a body.
func count(name, client string, replies []reply) Step {
	step := Step{Name: name, Client: client, Answers: map[string]int{}}
	for _, r := range replies {
		if r.Err != "" {
			step.Failed++
			continue
		}
		cluster, _, _ := strings.Cut(r.Body, " ")
		step.Answers[cluster]++
	}
	return step
}

// check compares who answered with who should. A backend is chosen at random
// for each connection, so now and then ten of them go to one cluster; then more
// are made before that counts as wrong.
func (s *story) check(ctx context.Context, c *cluster, step Step, want map[string]int) error {
	const series = 10
	for n := 0; ; n++ {
		if step.Failed > 0 {
			return fmt.Errorf("failed requests from %[2]s: %[1]d", step.Failed, c.name)
		}
		for cluster := range step.Answers {
			if want[cluster] == 0 {
				return fmt.Errorf("%s answered a request from %s and should not", cluster, c.name)
			}
		}
		if len(step.Answers) == len(want) {
			return nil
		}
		if n == series {
			return fmt.Errorf("of %d requests from %s only %v answered, want all of %v", requests*(n+1), c.name, step.Answers, want)
		}
		replies, err := s.request(ctx, c, c.service.url())
		if err != nil {
			return err
		}
		more := count(step.Name, c.name, replies)
		step.Failed += more.Failed
		for cluster, answers := range more.Answers {
			step.Answers[cluster] += answers
		}
	}
}

// ask shows what the agent of a node answers to a command of the operator.
func (s *story) ask(ctx context.Context, c *cluster, args ...string) error {
	args = append(args, "--api-socket", c.socket())
	s.typed(c.name, append([]string{"clustermesh"}, short(args, s.dir)...)...)
	out, err := output(ctx, c.node, c.system, append([]string{s.cfg.Self}, args...)...)
	if err != nil {
		return err
	}
	s.answer(string(out))
	return nil
}

func (s *story) await(ctx context.Context, what string, cond func(context.Context) error, procs ...*process) error {
	return await(ctx, s.cfg.timeout(), what, procs, cond)
}

// program is short for a whole command line.
func program(args []string, prefixes ...string) []string {
	return append([]string{filepath.Base(args[0])}, short(args[1:], prefixes...)...)
}

// short leaves out of arguments what only this run of the demo needs to know.
func short(args []string, prefixes ...string) []string {
	var out []string
	for _, a := range args {
		for _, p := range prefixes {
			a = strings.TrimPrefix(a, p+"/")
		}
		out = append(out, a)
	}
	return out
}
