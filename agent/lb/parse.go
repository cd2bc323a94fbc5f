package lb

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// AnnotationPrefix is that of all annotations that [ParsePolicy] reads.
const AnnotationPrefix = "clustermesh.io/"

// The annotations of a [Policy], without [AnnotationPrefix].
const (
	tiersAnnotation      = "tiers"
	weightsAnnotation    = "weights"
	spilloverAnnotation  = "spillover"
	stalenessAnnotation  = "staleness"
	consistentAnnotation = "consistent"
	withdrawAnnotation   = "on-withdraw"
)

// AnnotationError says what is wrong with one annotation; it counts as absent.
type AnnotationError struct {
	Annotation string // with its prefix
	Value      string // shortened if it is long
	Remedy     string // what to write instead
}

// Error is one sentence for the operator.
func (e *AnnotationError) Error() string {
	return fmt.Sprintf("read annotation %s: value %q is ignored; %s", e.Annotation, e.Value, e.Remedy)
}

// Limits of annotations, far above what people write.
const (
	maxValue    = 1024
	maxNames    = 512
	maxName     = 63
	maxWeight   = 10_000
	maxBackends = MaxSlots
	maxSeconds  = 365 * 24 * 3600
	minRamp     = 10
	maxRamp     = 3600
	shownValue  = 64
)

// ParsePolicy reads the policy of a service from its annotations below
// clustermesh.io/, their names given without that prefix. An annotation that is
// empty is absent. One that is wrong or unknown is reported, in order of names,
// and counts as absent, so that without good tiers the service's affinity holds;
// the others count. The values may come from anyone who may edit the service.
//
//	tiers        "local; eu-west, eu-central; *"  clusters in order of preference;
//	             "local; nearest"                 nearest is [Nearest]
//	weights      "east=3, west=1"                 each cluster's share of its tier
//	spillover    "min=3" or "min=50%", also "min=50%, hysteresis=10%, ramp=30s"
//	staleness    "keep", "demote:5m", "withdraw:30m" or both "demote:5m, withdraw:30m"
//	consistent   "true" or "false"
//	on-withdraw  "keep", "drain", "drain:2m" or "reset"; "drain" is "drain:30s"
func ParsePolicy(annotations map[string]string) (Policy, []*AnnotationError) {
	var p Policy
	var wrong []*AnnotationError
	for name, value := range annotations {
		if remedy := p.read(name, strings.TrimSpace(value)); remedy != "" {
			wrong = append(wrong, &AnnotationError{AnnotationPrefix + name, shorten(value), remedy})
		}
	}
	slices.SortFunc(wrong, func(a, b *AnnotationError) int { return strings.Compare(a.Annotation, b.Annotation) })
	return p, wrong
}

func shorten(value string) string {
	if len(value) <= shownValue {
		return strings.Clone(value)
	}
	return strings.ToValidUTF8(value[:shownValue], "") + "..."
}

// read reads one annotation and returns a remedy if it is wrong.
func (p *Policy) read(name, value string) (remedy string) {
	switch {
	case len(value) > maxValue:
		return "write at most " + strconv.Itoa(maxValue) + " bytes"
	case name == tiersAnnotation:
		return p.readTiers(value)
	case name == weightsAnnotation:
		return p.readWeights(value)
	case name == spilloverAnnotation:
		return p.readSpillover(value)
	case name == stalenessAnnotation:
		return p.readStaleness(value)
	case name == consistentAnnotation:
		return p.readConsistent(value)
	case name == withdrawAnnotation:
		return p.readWithdraw(value)
	}
	return "no such annotation is known; use one of consistent, on-withdraw, spillover, staleness, tiers and weights"
}

func (p *Policy) readTiers(value string) (remedy string) {
	if value == "" {
		return ""
	}
	var tiers [][]string
	var all []string
	for tier := range strings.SplitSeq(value, ";") {
		var names []string
		for name := range strings.SplitSeq(tier, ",") {
			name = strings.TrimSpace(name)
			if remedy := checkName(name, all); remedy != "" {
				return remedy
			}
			if name == Nearest && strings.Contains(tier, ",") {
				return "nearest stands for tiers of its own: write it alone, such as local; nearest"
			}
			name = strings.Clone(name)
			names, all = append(names, name), append(all, name)
		}
		tiers = append(tiers, names)
	}
	if len(tiers) > maxTiers {
		return "write at most " + strconv.Itoa(maxTiers) + " tiers"
	}
	p.Tiers = tiers
	return ""
}

// checkName accepts what can be a cluster's name, each once.
func checkName(name string, before []string) (remedy string) {
	switch {
	case name != Others && !isName(name):
		return fmt.Sprintf("%q is no cluster: write names of clusters, local for this one, * for every other or, in tiers, nearest", shorten(name))
	case slices.Contains(before, name):
		return fmt.Sprintf("%q occurs twice: write each cluster once", shorten(name))
	case len(before) >= maxNames:
		return "write at most " + strconv.Itoa(maxNames) + " clusters"
	}
	return ""
}

func isName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return name != "" && len(name) <= maxName && name[0] != '-' && name[len(name)-1] != '-'
}

func (p *Policy) readWeights(value string) (remedy string) {
	if value == "" {
		return ""
	}
	var weights []ClusterWeight
	var names []string
	positive := false
	for one := range strings.SplitSeq(value, ",") {
		name, text, _ := strings.Cut(one, "=")
		name = strings.TrimSpace(name)
		if remedy := checkName(name, names); remedy != "" {
			return remedy
		}
		if name == Nearest {
			return "nearest is an order and no cluster: it has no weight"
		}
		weight, ok := number(strings.TrimSpace(text), maxWeight)
		if !ok {
			return fmt.Sprintf("write %s=N with N from 0 to %d", name, maxWeight)
		}
		names = append(names, name)
		weights = append(weights, ClusterWeight{strings.Clone(name), weight})
		positive = positive || weight > 0
	}
	if !positive {
		return "give at least one cluster a weight above 0"
	}
	p.Weights = weights
	return ""
}

// number reads a decimal number from 0 to limit.
func number(text string, limit uint32) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n <= uint64(limit)
}

const spilloverRemedy = "write min=N with N from 1 to 65535 or min=X% with X from 1 to 100, and if wanted hysteresis=Y% with Y from 0 to 100 and ramp=T with T from 10s to 1h"

func (p *Policy) readSpillover(value string) (remedy string) {
	if value == "" {
		return ""
	}
	var s Spillover
	var names []string
	for one := range strings.SplitSeq(value, ",") {
		name, text, _ := strings.Cut(one, "=")
		name = strings.TrimSpace(name)
		if slices.Contains(names, name) || !s.set(name, strings.TrimSpace(text)) {
			return spilloverRemedy
		}
		names = append(names, name)
	}
	if s.IsZero() {
		return spilloverRemedy
	}
	p.Spillover = s
	return ""
}

func (s *Spillover) set(name, text string) (ok bool) {
	digits, percent := strings.CutSuffix(text, "%")
	switch {
	case name == "min" && percent:
		s.Percent, ok = number(digits, 100)
		return ok && s.Percent > 0
	case name == "min":
		s.Backends, ok = number(digits, maxBackends)
		return ok && s.Backends > 0
	case name == "hysteresis" && percent:
		s.Hysteresis, ok = number(digits, 100)
		return ok
	case name == "ramp":
		s.Ramp = seconds(text)
		return s.Ramp >= minRamp && s.Ramp <= maxRamp
	}
	return false
}

const stalenessRemedy = "write keep, demote:5m, withdraw:30m or both of these, the time to withdraw being longer, as a number with s, m, h or d, up to 365d"

func (p *Policy) readStaleness(value string) (remedy string) {
	if value == "" || value == "keep" {
		return ""
	}
	var s Staleness
	for one := range strings.SplitSeq(value, ",") {
		what, text, _ := strings.Cut(strings.TrimSpace(one), ":")
		after := &s.DemoteAfter
		if what == "withdraw" {
			after = &s.WithdrawAfter
		}
		seconds := seconds(text)
		if what != "withdraw" && what != "demote" || *after != 0 || seconds == 0 {
			return stalenessRemedy
		}
		*after = seconds
	}
	if s.WithdrawAfter != 0 && s.DemoteAfter >= s.WithdrawAfter {
		return stalenessRemedy
	}
	p.Staleness = s
	return ""
}

// seconds reads a time such as 90s or 5m; 0 is none.
func seconds(text string) uint32 {
	if text == "" {
		return 0
	}
	unit := map[byte]uint32{'s': 1, 'm': 60, 'h': 3600, 'd': 24 * 3600}[text[len(text)-1]]
	if unit == 0 {
		return 0
	}
	n, ok := number(text[:len(text)-1], maxSeconds/unit)
	if !ok {
		return 0
	}
	return n * unit
}

func (p *Policy) readConsistent(value string) (remedy string) {
	yes := strings.EqualFold(value, "true")
	if !yes && !strings.EqualFold(value, "false") && value != "" {
		return "write true or false"
	}
	p.Consistent = yes
	return ""
}

// drainSeconds is for how long connections drain if nothing else is said, as
// long as Kubernetes lets pods terminate.
const drainSeconds = 30

func (p *Policy) readWithdraw(value string) (remedy string) {
	what, text, timed := strings.Cut(value, ":")
	drain := seconds(text)
	switch {
	case value == "" || value == "keep":
	case value == "reset":
		p.OnWithdraw = WithdrawReset
	case value == "drain":
		p.OnWithdraw, p.Drain = WithdrawDrain, drainSeconds
	case what == "drain" && timed && drain > 0:
		p.OnWithdraw, p.Drain = WithdrawDrain, drain
	default:
		return "write keep, drain, drain:2m or reset, the time being a number with s, m, h or d, up to 365d"
	}
	return ""
}
