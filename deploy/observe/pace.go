package observe

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Pace says how long the durations of alert rules are. The rules that operators
// get have [Real] ones; a test that makes every alert fire cannot wait for them.
type Pace struct {
	// Divide makes every duration that much shorter; 1 keeps it.
	Divide int
	// Least is how short a duration becomes at most: a rate needs a few scrapes.
	Least time.Duration
}

// Real keeps all durations.
func Real() Pace { return Pace{Divide: 1} }

// duration is what becomes of a duration.
func (p Pace) duration(d time.Duration) time.Duration {
	if p.Divide == 1 || d == 0 {
		return d
	}
	return max(d/time.Duration(p.Divide), p.Least).Round(time.Second)
}

// span is ${15m}, a duration, or $s{15m}, a number of seconds.
var span = regexp.MustCompile(`\$(s?)\{(\d+)([smhd])\}`)

// expand writes the durations of an expression.
func (p Pace) expand(expr string) string {
	return span.ReplaceAllStringFunc(expr, func(text string) string {
		m := span.FindStringSubmatch(text)
		n, _ := strconv.Atoi(m[2]) // digits
		d := p.duration(time.Duration(n) * map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[3]])
		if m[1] == "s" {
			return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
		}
		return promDuration(d)
	})
}

// promDuration writes a duration of whole seconds as Prometheus does.
func promDuration(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if d >= u.unit && d%u.unit == 0 {
			return fmt.Sprintf("%d%s", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
