package schema

import "fmt"

// EncodeTime returns a Unix time in seconds as the RFC 3339 text in UTC that
// canaries and the heartbeat hold. It is written here, after Howard Hinnant's
// civil_from_days (https://howardhinnant.github.io/date_algorithms.html), so
// that the package needs no clock. Defined for years 0 to 9999.
func EncodeTime(unixSeconds int64) []byte {
	days, rest := floorDiv(unixSeconds, 86400)
	year, month, day := civil(days)
	return fmt.Appendf(nil, "%04d-%02d-%02dT%02d:%02d:%02dZ",
		year, month, day, rest/3600, rest/60%60, rest%60)
}

// civil turns days since 1970-01-01 into a Gregorian date. Years start in
// March, so that the leap day is the last of its year.
func civil(days int64) (year, month, day int64) {
	era, doe := floorDiv(days+719468, 146097)
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day, month = doy-(153*mp+2)/5+1, (mp+2)%12+1
	year = yoe + era*400
	if month <= 2 {
		year++
	}
	return year, month, day
}

// floorDiv divides rounding down; the remainder is never negative.
func floorDiv(a, b int64) (quotient, remainder int64) {
	quotient, remainder = a/b, a%b
	if remainder < 0 {
		quotient, remainder = quotient-1, remainder+b
	}
	return quotient, remainder
}

// parseTime reads an RFC 3339 time, such as "2026-11-21T00:35:12.5+01:00", as
// Unix seconds, dropping fractions. Leap seconds are refused, as they are by
// package time.
func parseTime(b []byte) (unixSeconds int64, ok bool) {
	const layout = "0000-00-00T00:00:00"
	if len(b) < len(layout) {
		return 0, false
	}
	var n [6]int64 // year, month, day, hour, minute, second
	if !fields(b[:len(layout)], layout, n[:]) {
		return 0, false
	}
	offset, ok := zone(fraction(b[len(layout):]))
	days := daysFromCivil(n[0], n[1], n[2])
	year, month, day := civil(days)
	if !ok || year != n[0] || month != n[1] || day != n[2] || n[3] > 23 || n[4] > 59 || n[5] > 59 {
		return 0, false
	}
	return days*86400 + n[3]*3600 + n[4]*60 + n[5] - offset, true
}

// fields reads the numbers of a text that is spelled as the layout, in which a 0
// stands for any digit.
func fields(b []byte, layout string, numbers []int64) bool {
	i := 0
	for at := range len(layout) {
		switch {
		case layout[at] == '0' && isDigit(b[at]):
			numbers[i] = numbers[i]*10 + int64(b[at]-'0')
		case layout[at] != '0' && b[at] == layout[at]:
			i++
		default:
			return false
		}
	}
	return true
}

// fraction skips a fraction of a second.
func fraction(b []byte) []byte {
	if len(b) < 2 || b[0] != '.' || !isDigit(b[1]) {
		return b
	}
	for b = b[1:]; len(b) > 0 && isDigit(b[0]); {
		b = b[1:]
	}
	return b
}

// zone reads what ends a time, and returns how many seconds it is ahead of UTC.
func zone(b []byte) (offset int64, ok bool) {
	if string(b) == "Z" {
		return 0, true
	}
	var n [2]int64
	const layout = "00:00"
	if len(b) != 1+len(layout) || !fields(b[1:], layout, n[:]) || n[0] > 23 || n[1] > 59 {
		return 0, false
	}
	offset = n[0]*3600 + n[1]*60
	switch b[0] {
	case '+':
		return offset, true
	case '-':
		return -offset, true
	}
	return 0, false
}

// daysFromCivil is the inverse of civil for valid dates, after the same source.
func daysFromCivil(year, month, day int64) int64 {
	if month <= 2 {
		year--
	}
	era, yoe := floorDiv(year, 400)
	doy := (153*((month+9)%12)+2)/5 + day - 1
	return era*146097 + yoe*365 + yoe/4 - yoe/100 + doy - 719468
}
