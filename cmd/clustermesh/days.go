package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// days is a duration flag that also understands days, the unit in which people
// think of certificates.
type days struct{ d *time.Duration }

func asDays(d *time.Duration) days { return days{d} }

// Type names the value in help texts.
func (days) Type() string { return "duration" }

// String is empty for zero, so that help shows no default for it.
func (f days) String() string {
	if f.d == nil || *f.d == 0 {
		return ""
	}
	return f.d.String()
}

// maxDays keeps the number of nanoseconds in range.
const maxDays = 36500

// Set reads "90d" or anything time.ParseDuration does.
func (f days) Set(s string) error {
	n, isDays := strings.CutSuffix(s, "d")
	if !isDays {
		d, err := time.ParseDuration(s)
		*f.d = d
		return err
	}
	v, err := strconv.Atoi(n)
	if err != nil || v < -maxDays || v > maxDays {
		return fmt.Errorf("%q is not a number of days up to %d", s, maxDays)
	}
	*f.d = time.Duration(v) * 24 * time.Hour
	return nil
}
