package schema

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	exportBasic    = `{"cluster":"cluster3","name":"basic","namespace":"default","annotations":{"my-annotation":"foo"},"labels":{"my-label":"test"},"Labels":{"my-label":"test"},"Annotations":{"my-annotation":"foo"},"exportCreationTimestamp":"2026-01-01T00:00:00Z","ports":[{"name":"my-port-1","protocol":"TCP","port":80}],"type":"ClusterSetIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":42}},"ipFamilies":["IPv4"]}`
	exportHeadless = `{"cluster":"east","name":"db","namespace":"shop","exportCreationTimestamp":"2025-12-31T23:59:59Z","ports":[{"protocol":"TCP","appProtocol":"postgres","port":5432},{"name":"dns","protocol":"UDP","port":53}],"type":"Headless","sessionAffinity":"None","ipFamilies":["IPv4","IPv6"],"internalTrafficPolicy":"Local","trafficDistribution":"PreferSameZone"}`
	exportSmallest = `{"cluster":"east","name":"db","namespace":"shop","exportCreationTimestamp":"2025-12-31T23:59:59Z","ports":[],"type":"Headless","sessionAffinity":"None"}`
)

func decodeBasic(value []byte) (*ServiceExport, error) {
	return DecodeServiceExport(cluster3(), ServiceExportKey("cluster3", "default", "basic"), value, DefaultLimits())
}

func decodeDB(value []byte) (*ServiceExport, error) {
	return DecodeServiceExport(east(false), ServiceExportKey("east", "shop", "db"), value, DefaultLimits())
}

func TestDecodeServiceExportFillsEveryMember(t *testing.T) {
	got, err := decodeBasic([]byte(exportBasic))
	want := &ServiceExport{
		Cluster: "cluster3", Name: "basic", Namespace: "default",
		Annotations: map[string]string{"my-annotation": "foo"}, Labels: map[string]string{"my-label": "test"},
		Created: 1767225600, Ports: []ExportPort{{"my-port-1", TCP, "", 80}}, Type: "ClusterSetIP",
		SessionAffinity: "ClientIP", SessionAffinitySeconds: 42, IPFamilies: []IPFamily{IPv4},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
	got, err = decodeDB([]byte(exportHeadless))
	want = &ServiceExport{
		Cluster: "east", Name: "db", Namespace: "shop", Created: 1767225599,
		Ports: []ExportPort{{"", TCP, "postgres", 5432}, {"dns", UDP, "", 53}}, Type: "Headless",
		SessionAffinity: "None", IPFamilies: []IPFamily{IPv4, IPv6}, InternalTrafficPolicy: "Local", TrafficDistribution: "PreferSameZone",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
}

// Labels and annotations are read under either name; the present one counts
// unless it is empty.
func TestBothSpellingsOfLabelsAndAnnotationsAreRead(t *testing.T) {
	tests := []struct{ members, labels, annotations string }{
		{``, "", ""},
		{`"labels":{"a":"new"},"annotations":{"b":"new"},`, "new", "new"},
		{`"Labels":{"a":"old"},"Annotations":{"b":"old"},`, "old", "old"},
		{`"Labels":{"a":"old"},"labels":{"a":"new"},"annotations":{"b":"new"},"Annotations":{"b":"old"},`, "new", "new"},
		{`"labels":{},"Labels":{"a":"old"},"Annotations":{"b":"old"},"annotations":null,`, "old", "old"},
		{`"labels":{"a":"new"},"Annotations":{"b":"old"},`, "new", "old"},
		{`"LABELS":{"a":"other"},`, "", ""},
	}
	for _, tt := range tests {
		e, err := decodeDB(change(t, exportSmallest, `"ports":[],`, tt.members))
		if err != nil || e.Labels["a"] != tt.labels || e.Annotations["b"] != tt.annotations {
			t.Errorf("%s: got %+v (%v)", tt.members, e, err)
		}
	}
}

func TestServiceExportsAreWrittenWithPortsAtLeast(t *testing.T) {
	e := ServiceExport{Cluster: "east", Name: "db", Namespace: "shop", Created: 1767225599, Type: "Headless", SessionAffinity: "None"}
	if got := string(e.Encode()); got != exportSmallest {
		t.Errorf("encoded %s, want %s", got, exportSmallest)
	}
}

func TestDecodeServiceExportNamesTheWrongField(t *testing.T) {
	runFieldTests(t, exportBasic, []fieldTest{
		{`"cluster":"cluster3"`, `"cluster":"east"`, "cluster"},
		{`"cluster":"cluster3",`, ``, "cluster"},
		{`"name":"basic"`, `"name":"other"`, "name"},
		{`"name":"basic",`, ``, "name"},
		{`"namespace":"default"`, `"namespace":"kube-system"`, "namespace"},
		{`"namespace":"default",`, ``, "namespace"},
		{`"2026-01-01T00:00:00Z"`, `"2026-01-01T01:00:00.5+01:00"`, ""},
		{`"2026-01-01T00:00:00Z"`, `null`, "exportCreationTimestamp"},
		{`"2026-01-01T00:00:00Z"`, `""`, "exportCreationTimestamp"},
		{`"2026-01-01T00:00:00Z"`, `"2026-02-30T00:00:00Z"`, "exportCreationTimestamp"},
		{`"2026-01-01T00:00:00Z"`, `"0001-01-01T00:00:00Z"`, "exportCreationTimestamp"},
		{`"2026-01-01T00:00:00Z"`, `"1970-01-01T00:00:00Z"`, "exportCreationTimestamp"},
		{`"2026-01-01T00:00:00Z"`, `"9999-12-31T23:59:59-01:00"`, "exportCreationTimestamp"},
		{`"2026-01-01T00:00:00Z"`, `1767225600`, "exportCreationTimestamp"},
		{`"exportCreationTimestamp":"2026-01-01T00:00:00Z",`, ``, "exportCreationTimestamp"},
		{`"type":"ClusterSetIP"`, `"type":"Headless"`, ""},
		{`"type":"ClusterSetIP"`, `"type":"headless"`, "type"},
		{`"type":"ClusterSetIP"`, `"type":""`, "type"},
		{`"type":"ClusterSetIP",`, ``, "type"},
		{`"sessionAffinity":"ClientIP"`, `"sessionAffinity":"None"`, ""},
		{`"sessionAffinity":"ClientIP"`, `"sessionAffinity":""`, "sessionAffinity"},
		{`"sessionAffinity":"ClientIP",`, ``, "sessionAffinity"},
		{`{"clientIP":{"timeoutSeconds":42}}`, `null`, ""},
		{`{"clientIP":{"timeoutSeconds":42}}`, `{"clientIP":null,"newer":1}`, ""},
		{`{"clientIP":{"timeoutSeconds":42}}`, `{"clientIP":{},"clientIP":{}}`, "sessionAffinityConfig/clientIP"},
		{`"timeoutSeconds":42`, `"timeoutSeconds":2147483648`, "sessionAffinityConfig/clientIP/timeoutSeconds"},
		{`"timeoutSeconds":42`, `"timeoutSeconds":-1`, "sessionAffinityConfig/clientIP/timeoutSeconds"},
		{`["IPv4"]`, `["IPv6","IPv4"]`, ""},
		{`["IPv4"]`, `null`, ""},
		{`["IPv4"]`, `["ipv4"]`, "ipFamilies"},
		{`["IPv4"]`, `["IPv4","IPv6","IPv4"]`, "ipFamilies"},
		{`,"ipFamilies":["IPv4"]`, ``, ""},
		{`,"ipFamilies"`, `,"internalTrafficPolicy":"Cluster","trafficDistribution":"PreferClose","ipFamilies"`, ""},
		{`,"ipFamilies"`, `,"internalTrafficPolicy":null,"trafficDistribution":null,"ipFamilies"`, ""},
		{`,"ipFamilies"`, `,"internalTrafficPolicy":"local","ipFamilies"`, "internalTrafficPolicy"},
		{`,"ipFamilies"`, `,"trafficDistribution":"PreferFar","ipFamilies"`, "trafficDistribution"},
		{`"name":"my-port-1"`, `"name":"my port"`, "ports/name"},
		{`"name":"my-port-1",`, ``, ""},
		{`"protocol":"TCP"`, `"protocol":"tcp"`, "ports/protocol"},
		{`"protocol":"TCP",`, ``, ""},
		{`"port":80`, `"port":0`, "ports/port"},
		{`"port":80`, `"port":65536`, "ports/port"},
		{`"port":80`, `"appProtocol":"h 2","port":80`, "ports/appProtocol"},
		{`"port":80`, `"targetPort":8080`, "ports/port"},
		{`"port":80`, `"port":80,"port":80`, "ports/port"},
		{`"ports":[{"name":"my-port-1","protocol":"TCP","port":80}],`, ``, ""},
		{`"labels":{"my-label":"test"}`, `"labels":{"a":"1","a":"2"}`, "labels/a"},
		{`"labels":{"my-label":"test"}`, `"labels":[]`, "labels"},
		{`"Annotations":{"my-annotation":"foo"}`, `"Annotations":{"a":1}`, "Annotations/a"},
		{`"Labels":{"my-label":"test"}`, `"Labels":{},"Labels":{}`, "Labels"},
		{`"ipFamilies"`, `"newer":{"a":[1]},"ipFamilies"`, ""},
	}, func(b []byte) error {
		e, err := decodeBasic(b)
		if err == nil && e.Validate() != nil {
			t.Errorf("what was accepted does not validate: %v", e.Validate())
		}
		return err
	})
}

func TestValidateServiceExportNamesTheWrongField(t *testing.T) {
	tests := []struct {
		field string
		alter func(*ServiceExport)
	}{
		{"cluster name", func(e *ServiceExport) { e.Cluster = "" }},
		{"namespace", func(e *ServiceExport) { e.Namespace = "" }},
		{"name", func(e *ServiceExport) { e.Name = "A" }},
		{"labels/a", func(e *ServiceExport) { e.Labels = map[string]string{"a": "\xff"} }},
		{"annotations", func(e *ServiceExport) { e.Annotations = map[string]string{"\xff": ""} }},
		{"exportCreationTimestamp", func(e *ServiceExport) { e.Created = 0 }},
		{"exportCreationTimestamp", func(e *ServiceExport) { e.Created = -62135596800 }},
		{"exportCreationTimestamp", func(e *ServiceExport) { e.Created = 253402300800 }},
		{"ports/name", func(e *ServiceExport) { e.Ports[0].Name = "a b" }},
		{"ports/protocol", func(e *ServiceExport) { e.Ports[0].Protocol = "ICMP" }},
		{"ports/appProtocol", func(e *ServiceExport) { e.Ports[0].AppProtocol = "a b" }},
		{"ports/port", func(e *ServiceExport) { e.Ports[0].Port = 0 }},
		{"type", func(e *ServiceExport) { e.Type = "" }},
		{"sessionAffinity", func(e *ServiceExport) { e.SessionAffinity = "" }},
		{"sessionAffinityConfig", func(e *ServiceExport) { e.SessionAffinitySeconds = 1 << 31 }},
		{"ipFamilies", func(e *ServiceExport) { e.IPFamilies = []IPFamily{"IPv5"} }},
		{"ipFamilies", func(e *ServiceExport) { e.IPFamilies = []IPFamily{IPv4, IPv4, IPv4} }},
		{"internalTrafficPolicy", func(e *ServiceExport) { e.InternalTrafficPolicy = "Remote" }},
		{"trafficDistribution", func(e *ServiceExport) { e.TrafficDistribution = "PreferFar" }},
	}
	for _, tt := range tests {
		e, err := decodeBasic([]byte(exportBasic))
		if err != nil || e.Validate() != nil {
			t.Fatal(err, e.Validate())
		}
		tt.alter(e)
		wantField(t, e.Validate(), tt.field)
	}
}

var genExport = rapid.Custom(func(t *rapid.T) *ServiceExport {
	port := rapid.Custom(func(t *rapid.T) ExportPort {
		return ExportPort{genToken.Draw(t, "name"), genProtocol.Draw(t, "protocol"), genToken.Draw(t, "app"), genPort.Draw(t, "port")}
	})
	return &ServiceExport{
		Cluster: "east", Namespace: genName.Draw(t, "namespace"), Name: genName.Draw(t, "name"),
		Labels: emptyToNil(genTexts.Draw(t, "labels")), Annotations: emptyToNil(genTexts.Draw(t, "annotations")),
		Created: rapid.Int64Range(-62135596799, 253402300799).Filter(isExportTime).Draw(t, "created"),
		Ports:   orNil(rapid.SliceOfN(port, 0, 4).Draw(t, "ports")),
		Type:    rapid.SampledFrom(exportTypes()).Draw(t, "type"), SessionAffinity: rapid.SampledFrom(sessionAffinities()).Draw(t, "affinity"),
		SessionAffinitySeconds: rapid.Uint32Range(0, 1<<31-1).Draw(t, "seconds"),
		IPFamilies:             orNil(rapid.SliceOfN(rapid.SampledFrom([]IPFamily{IPv4, IPv6}), 0, 2).Draw(t, "families")),
		InternalTrafficPolicy:  rapid.SampledFrom(trafficPolicies()).Draw(t, "policy"),
		TrafficDistribution:    rapid.SampledFrom(trafficDistributions()).Draw(t, "distribution"),
	}
})

func TestServiceExportsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genExport.Draw(t, "export")
		if err := want.Validate(); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeServiceExport(east(false), ServiceExportKey("east", want.Namespace, want.Name), want.Encode(), DefaultLimits())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded %+v, want %+v (%v)", got, want, err)
		}
	})
}

func TestHostileServiceExportsCostLittleMemory(t *testing.T) {
	fill := func(open, close string, entry func(int) string) string {
		var b strings.Builder
		for i := 0; b.Len() < 1000<<10; i++ {
			b.WriteString(entry(i))
		}
		return strings.Replace(exportSmallest, `"ports":[]`, open+strings.TrimSuffix(b.String(), ",")+close, 1)
	}
	text := func(i int) string { return fmt.Sprintf(`"%d":"",`, i) }
	tests := map[string]string{
		"many ports":    fill(`"ports":[`, `]`, func(int) string { return `{"port":1},` }),
		"many labels":   fill(`"Labels":{`, `}`, text),
		"many families": fill(`"ipFamilies":[`, `]`, func(int) string { return `"IPv4",` }),
		"long time":     strings.Replace(exportSmallest, ":59Z", ":59."+strings.Repeat("9", 1000<<10), 1),
	}
	for name, value := range tests {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			input := []byte(value)
			runtime.ReadMemStats(&before)
			_, err := decodeDB(input)
			runtime.ReadMemStats(&after)
			checkRefused(t, err)
			if used := after.TotalAlloc - before.TotalAlloc; used > 2*uint64(len(value)) {
				t.Errorf("%d bytes cost %d of memory", len(value), used)
			}
		})
	}
}
