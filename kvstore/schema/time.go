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
