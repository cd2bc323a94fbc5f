package schema

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// hostileServices are values a writer of this format would never send, each as
// large as the limits allow.
func hostileServices() map[string]string {
	fill := func(open, close string, entry func(int) string) string {
		var b strings.Builder
		for i := 0; b.Len() < 1000<<10; i++ {
			b.WriteString(entry(i))
		}
		return serviceWith(open + strings.TrimSuffix(b.String(), ",") + close)
	}
	short := func(i int) string { return fmt.Sprintf(`"1::%x":{},`, i) }
	return map[string]string{
		"many backends": fill(`"backends":{`, `}`, short),
		"many ports":    fill(`"backends":{"1::":{`, `}}`, func(i int) string { return fmt.Sprintf(`"%d":{"Protocol":"TCP","Port":1},`, i) }),
		"many labels":   fill(`"labels":{`, `}`, func(i int) string { return fmt.Sprintf(`"%d":"",`, i) }),
		"many hints":    fill(`"zones":{"1::":{"forZones":[`, `]}}`, func(int) string { return `{},` }),
		"distinct maps": fill(`"backends":{`, `}`, func(i int) string {
			return fmt.Sprintf(`"1::%x":{"%d":{"Protocol":"TCP","Port":1}},`, i%4999, i)
		}),
		"small first entry":   serviceWith(`"backends":{"1::":{}},"hostnames":{"1::":""},"zones":{"1::":{}},"newer":"` + strings.Repeat("x", 1000<<10) + `"`),
		"unknown objects":     fill(`"newer":[`, `]`, func(int) string { return `{"a":{"b":[1]}},` }),
		"escapes":             serviceWith(`"labels":{"a":"` + strings.Repeat(`\u0001`, 170_000) + `"}`),
		"deep":                serviceWith(`"newer":` + strings.Repeat("[", 500<<10) + strings.Repeat("]", 500<<10)),
		"one number":          serviceWith(`"newer":` + strings.Repeat("1", 1000<<10)),
		"backslashes":         serviceWith(`"newer":"` + strings.Repeat(`\\`, 500<<10)),
		"long address":        serviceWith(`"backends":{"` + strings.Repeat("1", 1000<<10) + `":{}}`),
		"similar port maps":   fill(`"backends":{`, `}`, similarPorts),
		"nothing but a brace": strings.Repeat("{", 1000<<10),
	}
}

// similarPorts differ only at the end of a long name.
func similarPorts(i int) string {
	return fmt.Sprintf(`"1::%x":{"%s%d":{"Protocol":"TCP","Port":1}},`, i, strings.Repeat("x", 20_000), i)
}

// Whatever a value of the largest size holds, decoding it allocates at most a
// small multiple of it.
func TestDecodingHostileServicesCostsLittleMemory(t *testing.T) {
	const factor = 12
	for name, value := range hostileServices() {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			input := []byte(value)
			runtime.ReadMemStats(&before)
			s, err := DecodeService(east(false), ServiceKey("east", "shop", "web"), input, DefaultLimits())
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > factor*uint64(len(value)) {
				t.Errorf("%d bytes cost %d of memory", len(value), used)
			}
			if (s == nil) == (err == nil) {
				t.Errorf("got both or neither of a service and an error: %v", err)
			}
		})
	}
}

// Backends that are spelled alike share what they say, so the allocations of a
// large service do not grow with it.
func TestDecodingLargeServicesAllocatesLittle(t *testing.T) {
	value, key := sizedService(1000).Encode(), ServiceKey("east", "shop", "web")
	allocs := testing.AllocsPerRun(10, func() {
		if _, err := DecodeService(east(false), key, value, DefaultLimits()); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 100 {
		t.Errorf("1000 backends cost %v allocations", allocs)
	}
}
