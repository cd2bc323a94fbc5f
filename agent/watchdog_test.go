package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/bpf"
)

// rounds is a kernel that finds these things, one round after the other.
type rounds [][]bpf.Repair

func (r *rounds) Repair() []bpf.Repair {
	now := (*r)[0]
	*r = (*r)[1:]
	return now
}

func TestWatchdog(t *testing.T) {
	var log bytes.Buffer
	var faults []string
	unmounted := bpf.Repair{Kind: bpf.RepairDirectory, Name: "/pins", Found: "gone", Err: errors.New("not on a bpffs")}
	forbidden := bpf.Repair{Kind: bpf.RepairAttachment, Name: "connect4", Found: "detached", Err: fmt.Errorf("attach: %w", bpf.ErrRights)}
	registry := prometheus.NewRegistry()
	c := &core{log: slog.New(slog.NewTextHandler(&log, nil)), metrics: newMetrics(registry)}
	w := newWatchdog(&rounds{
		nil,
		{{Kind: bpf.RepairMap, Name: "cm_slab", Found: "no pin"}, {Kind: bpf.RepairMap, Name: "cm_meta", Found: "foreign object"}},
		{unmounted},
		{unmounted},
		nil,
		{unmounted, forbidden},
	}, c, func(fault string) { faults = append(faults, fault) })
	tick := make(chan time.Time, 6)
	for range 6 {
		tick <- time.Time{}
	}
	err := w.run(context.Background(), tick)
	if !errors.Is(err, bpf.ErrRights) || !strings.Contains(err.Error(), "repair attachment connect4 (detached)") || strings.Contains(err.Error(), "/pins") {
		t.Errorf("ended with %v", err)
	}
	if repairs, faults := sums(t, registry); repairs != 2 || faults != 2 {
		t.Errorf("%v repairs and %v faults are counted", repairs, faults)
	}
	for text, want := range map[string]int{"key=cm_slab": 1, "key=cm_meta err=\"foreign object\"": 1, "not on a bpffs": 2, "level=WARN": 2, "level=ERROR": 3} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("%q is logged %d times, want %d:\n%s", text, got, want, &log)
		}
	}
	wrong := func(i int) bool { return strings.Contains(faults[i], "not on a bpffs") == (i == 2 || i == 3 || i == 5) }
	for i := range faults {
		if !wrong(i) {
			t.Errorf("fault %d is %q", i, faults[i])
		}
	}
}

// needyKernel lost an attachment and cannot make another.
type needyKernel struct{ *memoryKernel }

func (needyKernel) Repair() []bpf.Repair {
	return []bpf.Repair{{Kind: bpf.RepairAttachment, Name: "connect4", Found: "detached", Err: bpf.ErrRights}}
}

// TestAgentEndsForItsRights: what only a new start can repair ends the agent, by
// an error that says so.
func TestAgentEndsForItsRights(t *testing.T) {
	s := newSimulation(t)
	s.stop()
	cfg := s.agent.cfg
	cfg.Registry = nil
	a, err := New(cfg, needyKernel{s.kernel})
	if err != nil {
		t.Fatal(err)
	}
	a.dial, a.pause = s.connect, time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Run(ctx); !errors.Is(err, bpf.ErrRights) || !strings.Contains(err.Error(), "a new start has them") {
		t.Errorf("ended with %v", err)
	}
}

func TestWatchdogEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w := &watchdog{}
	if err := w.run(ctx, nil); err != nil {
		t.Error(err)
	}
}

// sums reads the watchdog's metrics.
func sums(t *testing.T, registry *prometheus.Registry) (repairs, faults float64) {
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "clustermesh_agent_repairs_total":
				repairs += m.GetCounter().GetValue()
			case "clustermesh_agent_faults":
				faults += m.GetGauge().GetValue()
			}
		}
	}
	return repairs, faults
}
