package schema

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// checkFuzzed fails if a refused value has no *Error, or if an accepted one is
// not stable: encoding and decoding it again must yield the same record, from a
// value not much larger than the one that came in.
func checkFuzzed(t *testing.T, value []byte, got record, err error, again func([]byte) (record, error)) {
	t.Helper()
	checkFuzzedGrowth(t, 8, value, got, err, again)
}

func checkFuzzedGrowth(t *testing.T, growth int, value []byte, got record, err error, again func([]byte) (record, error)) {
	t.Helper()
	var e *Error
	if err != nil {
		if !errors.As(err, &e) {
			t.Fatalf("%v is no *Error", err)
		}
		checkPrintable(t, err)
		return
	}
	encoded := got.Encode()
	if len(encoded) > growth*len(value)+512 {
		t.Fatalf("%d bytes became %d", len(value), len(encoded))
	}
	second, err := again(encoded)
	if err != nil || !reflect.DeepEqual(second, got) {
		t.Fatalf("%s decodes to %+v, not to %+v (%v)", encoded, second, got, err)
	}
}

// roomy limits let every encoded record back in.
func roomy() Limits {
	l := DefaultLimits()
	l.MaxValueBytes *= 10
	return l
}

func seed(f *testing.F, values ...string) {
	for _, v := range values {
		f.Add([]byte(v))
		f.Add([]byte(v[:len(v)/2]))
		f.Add([]byte(strings.ReplaceAll(v, ":", " :\n")))
	}
}

func FuzzDecodeService(f *testing.F) {
	seed(f, eastService, nullZone, serviceWith(`"frontends":{"1::":{"a":{"Protocol":"TCP","Port":"","Port":1}}}`), serviceWith(`"newer":[{"a":1e3}],"backends":{"::ffff:1.2.3.4":{},"fd00::1":null}`))
	key := ServiceKey("east", "shop", "web")
	decode := func(value []byte) (record, error) { return DecodeService(east(false), key, value, roomy()) }
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := DecodeService(east(false), key, value, DefaultLimits())
		checkFuzzed(t, value, got, err, decode)
		want, ok := oracleService(east(false), "shop", "web", value)
		if err == nil && (!ok || !reflect.DeepEqual(got, want)) {
			t.Fatalf("decoded %+v, encoding/json %+v", got, want)
		}
		if err != nil && ok && !beyondOracle(err) && !repeatsMember(value) {
			t.Fatalf("encoding/json accepts it: %v", err)
		}
	})
}

// beyondOracle reports whether a value was refused for what encoding/json does
// not look at.
func beyondOracle(err error) bool {
	for _, reason := range []string{"at most", "UTF-8"} {
		if strings.Contains(err.Error(), reason) {
			return true
		}
	}
	return false
}

func FuzzDecodeLocalService(f *testing.F) {
	seed(f, localWeb)
	key := LocalServiceKey("east", "shop", "web")
	decode := func(value []byte) (record, error) { return DecodeLocalService(east(false), key, value, roomy()) }
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := DecodeLocalService(east(false), key, value, DefaultLimits())
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeNode(f *testing.F) {
	seed(f, nodeOne)
	key := NodeKey("cluster3", "test-node-1")
	decode := func(value []byte) (record, error) { return DecodeNode(cluster3(), key, value, roomy()) }
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := DecodeNode(cluster3(), key, value, DefaultLimits())
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeIPEntry(f *testing.F) {
	f.Add(IPKey("10.7.0.21"), []byte(ipEast))
	f.Add(IPKey("10.7.1.0/24"), []byte(ipMasked))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		decode := func(value []byte) (record, error) { return DecodeIPEntry(east(false), 255, key, value, roomy()) }
		got, err := DecodeIPEntry(east(false), 255, key, value, DefaultLimits())
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeIdentity(f *testing.F) {
	f.Add(IdentityKey(458753), []byte(idEast))
	f.Add(IdentityKey(458753), []byte("k8s:io.cilium.k8s.policy.cluster=east;cidr:1.0.0.0/8=;"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		decode := func(value []byte) (record, error) { return DecodeIdentity(east(false), 255, key, value, roomy()) }
		got, err := DecodeIdentity(east(false), 255, key, value, DefaultLimits())
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeClusterConfig(f *testing.F) {
	seed(f, configStock, configMinimal, configCached, `{"id":7}`, `null`)
	decode := func(value []byte) (record, error) { return DecodeClusterConfig("east", value) }
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := DecodeClusterConfig("east", value)
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzParseServiceKey(f *testing.F) {
	f.Add(ServiceKey("east", "shop", "web"))
	f.Add("cilium/state/services/v1/east/shop/web/x")
	f.Fuzz(func(t *testing.T, key string) {
		namespace, name, err := ParseServiceKey(KindService, "east", false, key)
		if err != nil {
			wantField(t, err, "key")
		} else if ServiceKey("east", namespace, name) != key {
			t.Fatalf("%q is read as %q/%q", key, namespace, name)
		}
	})
}
