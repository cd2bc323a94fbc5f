package bpf

import (
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// TestLayoutMatchesObject holds every field of the Go structs against the type
// information of the compiled programs.
func TestLayoutMatchesObject(t *testing.T) {
	spec, err := loadClustermesh()
	if err != nil {
		t.Fatal(err)
	}
	for name, goType := range map[string]reflect.Type{
		"cm_frontend_key": reflect.TypeFor[layout.FrontendKey](),
		"cm_backend":      reflect.TypeFor[layout.Backend](),
		"cm_region":       reflect.TypeFor[layout.Region](),
		"cm_meta":         reflect.TypeFor[layout.Meta](),
		"cm_cluster":      reflect.TypeFor[layout.Cluster](),
		"cm_info":         reflect.TypeFor[clustermeshCmInfo](),
		"cm_counters":     reflect.TypeFor[clustermeshCmCounters](),
		"cm_reasons":      reflect.TypeFor[Reasons](),
	} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, problem := range compareStruct(c, goType) {
			t.Errorf("%s: %s", name, problem)
		}
	}
}

// compareStruct compares the size, and each named Go field with the C field at
// the same offset.
func compareStruct(c *btf.Struct, g reflect.Type) (problems []string) {
	if uintptr(c.Size) != g.Size() {
		problems = append(problems, "sizes differ")
	}
	at := map[uintptr]btf.Member{}
	for _, m := range c.Members {
		at[uintptr(m.Offset.Bytes())] = m
	}
	for i := range g.NumField() {
		field := g.Field(i)
		if field.Name == "_" {
			continue
		}
		m, ok := at[field.Offset]
		size, _ := btf.Sizeof(m.Type)
		if !ok || uintptr(size) != field.Type.Size() || !strings.HasSuffix(strings.ReplaceAll(m.Name, "_", ""), strings.ToLower(field.Name)) {
			problems = append(problems, "field "+field.Name+" is not where C has "+m.Name)
		}
	}
	return problems
}

func TestCompareStructSeesDifferences(t *testing.T) {
	u32 := &btf.Int{Size: 4}
	c := &btf.Struct{Size: 8, Members: []btf.Member{{Name: "a", Type: u32}, {Name: "b", Type: u32, Offset: 32}}}
	for _, tt := range []struct {
		name     string
		value    any
		problems int
	}{
		{"same", struct{ A, B uint32 }{}, 0},
		{"other order", struct{ B, A uint32 }{}, 2},
		{"other size of a field", struct {
			A uint16
			_ uint16
			B uint32
		}{}, 1},
		{"longer", struct{ A, B, C uint32 }{}, 2},
	} {
		if got := compareStruct(c, reflect.TypeOf(tt.value)); len(got) != tt.problems {
			t.Errorf("%s: got %v, want %d problems", tt.name, got, tt.problems)
		}
	}
}

// TestMapsAreAsTheLayoutSays covers what the structs do not: which map has which
// key and value, and that the mapped ones can be mapped.
func TestMapsAreAsTheLayoutSays(t *testing.T) {
	spec, err := loadClustermesh()
	if err != nil {
		t.Fatal(err)
	}
	const mappable = 1 << 10 // BPF_F_MMAPABLE
	for name, want := range map[string]ebpf.MapSpec{
		"cm_frontends": {Type: ebpf.Hash, KeySize: 20, ValueSize: 4},
		"cm_headers":   {Type: ebpf.Array, KeySize: 4, ValueSize: 8, Flags: mappable},
		"cm_slab":      {Type: ebpf.Array, KeySize: 4, ValueSize: 32, Flags: mappable},
		"cm_meta":      {Type: ebpf.Array, KeySize: 4, ValueSize: 216, Flags: mappable},
		"cm_clusters":  {Type: ebpf.Array, KeySize: 4, ValueSize: 48, Flags: mappable},
		"cm_reverse":   {Type: ebpf.LRUHash, KeySize: 32, ValueSize: 20},
		"cm_tcp_slots": {Type: ebpf.Array, KeySize: 4, ValueSize: 64, Flags: mappable},
		"cm_tcp_peers": {Type: ebpf.Hash, KeySize: 8, ValueSize: 40, Flags: 1}, // BPF_F_NO_PREALLOC
		"cm_affinity":  {Type: ebpf.LRUHash, KeySize: 24, ValueSize: 28},
		"cm_settings":  {Type: ebpf.Array, KeySize: 4, ValueSize: 16, Flags: mappable},
		"cm_events":    {Type: ebpf.RingBuf},
		"cm_usage":     {Type: ebpf.Array, KeySize: 4, ValueSize: 16, Flags: mappable},
	} {
		m := spec.Maps[name]
		got := ebpf.MapSpec{Type: m.Type, KeySize: m.KeySize, ValueSize: m.ValueSize, Flags: m.Flags}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}
