package kvstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const modelCanary = "canary"

// publishing drives a Publisher step by step against a store with faults, and
// knows what must be true after each step. Values are version numbers, so "not
// older than" can be checked.
type publishing struct {
	t       *rapid.T
	store   *Memory
	p       *Publisher
	version int
	want    map[string]string // the set
	touched map[string]int    // version of the last Put or Delete of a key
	left    map[string]string // of a former life
	synced  bool
	atSync  map[string]int // touched when Synced was called
	poison  map[string]bool
	blessed bool // this life's canary was seen
	waiting []barrier
}

// barrier is a Flush that has not returned.
type barrier struct {
	reached <-chan struct{}
	touched map[string]int // when it was called
}

func newPublishing(t *rapid.T) *publishing {
	m := &publishing{t: t, store: NewMemory(), want: map[string]string{}, touched: map[string]int{},
		left: map[string]string{}, poison: map[string]bool{}}
	ops := []Op{{Key: "other", Value: []byte("stays")}}
	for i := range rapid.IntRange(0, 5).Draw(t, "leftovers") {
		key := fmt.Sprintf("p/%d", 2*i)
		m.left[key] = rapid.SampledFrom([]string{"former", "1", "2"}).Draw(t, "left value")
		ops = append(ops, Op{Key: key, Value: []byte(m.left[key])})
	}
	if rapid.Bool().Draw(t, "former canary") {
		ops = append(ops, Op{Key: modelCanary, Value: []byte("former")})
	}
	m.must(m.store.Apply(t.Context(), ops))
	m.p = NewPublisher(m.store, PublisherConfig{Prefix: "p/", Canary: modelCanary, MaxOps: 4, MaxBytes: 20, PageSize: 2,
		LifeCheck: time.Hour, RetryMin: 1, RetryMax: 1, CanaryValue: func() []byte { return []byte("now") }})
	return m
}

func (m *publishing) must(err error) {
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *publishing) key() string {
	return fmt.Sprintf("p/%d", rapid.IntRange(0, 9).Draw(m.t, "key"))
}

func (m *publishing) put(*rapid.T) {
	key := m.key()
	m.version++
	value := strconv.Itoa(m.version)
	if old, ok := m.want[key]; ok && rapid.Bool().Draw(m.t, "unchanged") {
		m.p.Put(key, []byte(old))
		return
	}
	m.want[key], m.touched[key] = value, m.version
	m.p.Put(key, []byte(value))
}

func (m *publishing) delete(*rapid.T) {
	key := m.key()
	m.version++
	if _, ok := m.want[key]; ok {
		m.touched[key] = m.version
	}
	delete(m.want, key)
	m.p.Delete(key)
}

func (m *publishing) sync(*rapid.T) {
	if !m.synced {
		m.synced, m.atSync = true, maps.Clone(m.touched)
	}
	m.p.Synced()
}

func (m *publishing) toggle(*rapid.T) {
	key := m.key()
	m.poison[key] = !m.poison[key]
}

// step lets the publisher do one thing, with a fault at any point.
func (m *publishing) step(*rapid.T) {
	fate := rapid.SampledFrom([]FaultOp{"", "", "", FaultRange, FaultApply, FaultApplied}).Draw(m.t, "fault")
	between := rapid.SampledFrom([]func(*rapid.T){func(*rapid.T) {}, m.put, m.delete, m.sync}).Draw(m.t, "meanwhile")
	m.store.SetFault(func(f Fault) error {
		if f.Op == FaultApplied {
			between(m.t)
		}
		if f.Op == fate {
			return ErrBroken
		}
		for _, op := range f.Ops {
			if f.Op == FaultApply && m.poison[op.Key] {
				return errors.New("refused")
			}
		}
		return nil
	})
	m.stepOnce()
	m.store.SetFault(nil)
}

func (m *publishing) stepOnce() {
	m.p.nudge() // so that it does not wait
	if err := m.p.step(context.Background()); err != nil {
		m.p.failed(err)
	}
}

func (m *publishing) newLife(*rapid.T) {
	m.store.NewLife()
	m.left, m.blessed = map[string]string{}, false
	m.must(m.store.Apply(context.Background(), []Op{{Key: "other", Value: []byte("stays")}}))
	m.p.suspect = true // as the next life check, or a failure, would have it
}

func (m *publishing) flush(*rapid.T) {
	_, reached := m.p.barrier()
	m.waiting = append(m.waiting, barrier{reached, maps.Clone(m.touched)})
}

// checkBarriers holds when a barrier is reached: what was so when it was made is
// in the store, or something newer, or refused alone.
func (m *publishing) checkBarriers(have map[string]string) {
	m.waiting = slices.DeleteFunc(m.waiting, func(b barrier) bool {
		select {
		case <-b.reached:
		default:
			return false
		}
		for key, least := range b.touched {
			got, stored := have[key]
			version, _ := strconv.Atoi(got)
			_, refused := m.p.parked[key]
			if gone := !stored && m.atSyncWasDeletion(key, least); version < least && !gone && !refused {
				m.t.Fatalf("barrier although %s is %q, below %d", key, got, least)
			}
		}
		return true
	})
}

func (m *publishing) resync(*rapid.T) { m.p.Resync() }

func (m *publishing) content() map[string]string {
	all := map[string]string{}
	for _, kv := range m.store.current() {
		all[kv.Key] = string(kv.Value)
	}
	return all
}

func (m *Memory) current() []KV {
	r, _ := m.Range(context.Background(), "\x00", noEnd, 0, 0)
	return r.KVs
}

// check holds after every step.
func (m *publishing) check(*rapid.T) {
	have := m.content()
	m.checkBarriers(have)
	if have["other"] != "stays" {
		m.t.Fatal("a key outside the prefix was touched")
	}
	for key, value := range m.left {
		if _, touched := m.touched[key]; !m.synced && !touched && have[key] != value {
			m.t.Fatalf("leftover %s went before the set was complete", key)
		}
	}
	if have[modelCanary] != "now" {
		m.blessed = false
		return
	}
	if !m.blessed {
		m.blessed = true
		m.checkBlessing(have)
	}
}

// checkBlessing holds when the canary appears: what was so at Synced is in the
// store, or something newer, and leftovers are gone.
func (m *publishing) checkBlessing(have map[string]string) {
	if !m.synced {
		m.t.Fatal("canary before Synced")
	}
	for key, least := range m.atSync {
		got, stored := have[key]
		version, _ := strconv.Atoi(got)
		gone := !stored && m.atSyncWasDeletion(key, least)
		if version < least && !gone {
			m.t.Fatalf("canary although %s is %q, below %d", key, got, least)
		}
	}
	for key := range m.left {
		if _, stored := have[key]; stored && m.touched[key] == 0 {
			m.t.Fatalf("canary although leftover %s is still there", key)
		}
	}
}

// atSyncWasDeletion tells whether absence is right: the key was deleted at
// Synced or has been since.
func (m *publishing) atSyncWasDeletion(key string, least int) bool {
	_, wanted := m.want[key]
	return !wanted || m.touched[key] > least
}

func (m *publishing) drain() {
	m.poison = map[string]bool{}
	m.sync(m.t)
	for range rapid.IntRange(0, 12).Draw(m.t, "faulty steps at the end") {
		m.step(m.t)
		m.check(m.t)
	}
	for range 1000 {
		if m.p.Pending() == 0 && m.content()[modelCanary] == "now" && m.done() && len(m.waiting) == 0 {
			return
		}
		m.stepOnce()
		m.check(m.t)
	}
	m.t.Fatalf("still %d keys pending, stats %+v, content %v", m.p.Pending(), m.p.Stats(), m.content())
}

func (m *publishing) done() bool {
	select {
	case <-m.p.Done():
		return true
	default:
		return false
	}
}

func TestPublisherAgainstOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newPublishing(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"put": m.put, "put2": m.put, "delete": m.delete, "sync": m.sync, "poison": m.toggle,
			"step": m.step, "step2": m.step, "step3": m.step, "life": m.newLife, "resync": m.resync, "flush": m.flush, "flush2": m.flush, "": m.check,
		})
		m.drain()
		have := m.content()
		delete(have, "other")
		delete(have, modelCanary)
		if !maps.Equal(have, m.want) || m.p.Len() != len(m.want) {
			rt.Fatalf("at rest the store has %v (%d entries), wanted %v", have, m.p.Len(), m.want)
		}
	})
}
