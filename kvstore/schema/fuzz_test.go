package schema

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/cost"
)

// measured decodes n bytes of input within the bounds of memory.
func measured[R any](t *testing.T, n int, decode func() (R, error)) (got R, err error) {
	t.Helper()
	cost.Bounded(t, n, 0, func() { got, err = decode() })
	return got, err
}

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
		got, err := measured(t, len(value), func() (*Service, error) { return DecodeService(east(false), key, value, DefaultLimits()) })
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
	seed(f, localWeb, localPort)
	key := LocalServiceKey("east", "shop", "web")
	decode := func(value []byte) (record, error) { return DecodeLocalService(east(false), key, value, roomy()) }
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := measured(t, len(value), func() (*LocalService, error) { return DecodeLocalService(east(false), key, value, DefaultLimits()) })
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeNode(f *testing.F) {
	seed(f, nodeOne)
	key := NodeKey("cluster3", "test-node-1")
	decode := func(value []byte) (record, error) { return DecodeNode(cluster3(), key, value, roomy()) }
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := measured(t, len(value), func() (*Node, error) { return DecodeNode(cluster3(), key, value, DefaultLimits()) })
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeIPEntry(f *testing.F) {
	f.Add(IPKey("10.7.0.21"), []byte(ipEast))
	f.Add(IPKey("10.7.1.0/24"), []byte(ipMasked))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		decode := func(value []byte) (record, error) { return DecodeIPEntry(east(false), 255, key, value, roomy()) }
		got, err := measured(t, len(key)+len(value), func() (*IPEntry, error) { return DecodeIPEntry(east(false), 255, key, value, DefaultLimits()) })
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeIdentity(f *testing.F) {
	f.Add(IdentityKey(458753), []byte(idEast))
	f.Add(IdentityKey(458753), []byte("k8s:io.cilium.k8s.policy.cluster=east;cidr:1.0.0.0/8=;"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		decode := func(value []byte) (record, error) { return DecodeIdentity(east(false), 255, key, value, roomy()) }
		got, err := measured(t, len(key)+len(value), func() (*Identity, error) { return DecodeIdentity(east(false), 255, key, value, DefaultLimits()) })
		checkFuzzed(t, value, got, err, decode)
	})
}

func FuzzDecodeClusterConfig(f *testing.F) {
	seed(f, configStock, configMinimal, configCached, `{"id":7}`, `null`)
	decode := func(value []byte) (record, error) { return DecodeClusterConfig("east", value) }
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := measured(t, len(value), func() (ClusterConfig, error) { return DecodeClusterConfig("east", value) })
		checkFuzzed(t, value, got, err, decode)
	})
}

// FuzzParseServiceKey reads keys of every kind, of a cluster and of a relay. What
// is taken is spelled in one way only, and lies in the range that is watched.
func FuzzParseServiceKey(f *testing.F) {
	kinds := []Kind{KindService, KindLocalService, KindEndpointSlice, KindServiceExport}
	for i, k := range kinds {
		f.Add(uint8(i), false, "east", WatchPrefix(k, "east", false)+"shop/web")
		f.Add(uint8(i), true, "east", WatchPrefix(k, "east", true)+"shop/web/x")
	}
	f.Fuzz(func(t *testing.T, kind uint8, cached bool, cluster, key string) {
		if ValidateClusterName(cluster) != nil {
			return // it is our own configuration's
		}
		k := kinds[int(kind)%len(kinds)]
		var namespace, name string
		_, err := measured(t, len(cluster)+len(key), func() (_ bool, err error) {
			namespace, name, err = ParseServiceKey(k, cluster, cached, key)
			return err == nil, err
		})
		prefix := WatchPrefix(k, cluster, cached)
		if err != nil {
			wantField(t, err, "key")
			checkPrintable(t, err)
		} else if prefix+namespace+"/"+name != key || key < prefix || key >= PrefixEnd(prefix) {
			t.Fatalf("%q below %q is read as %q/%q", key, prefix, namespace, name)
		}
	})
}

// FuzzPrefixEnd compares the range of a prefix with the prefix.
func FuzzPrefixEnd(f *testing.F) {
	f.Add("cilium/state/", "cilium/state0")
	f.Add("a\xff\xff", "b")
	f.Add("", "\xff")
	f.Fuzz(func(t *testing.T, prefix, key string) {
		var end string
		cost.Bounded(t, len(prefix), 0, func() { end = PrefixEnd(prefix) })
		inside := key >= prefix && (end == "\x00" || key < end)
		if inside != strings.HasPrefix(key, prefix) {
			t.Fatalf("%q in [%q, %q): %v", key, prefix, end, inside)
		}
	})
}
