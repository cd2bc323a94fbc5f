package source

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	yamlstream "k8s.io/apimachinery/pkg/util/yaml"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// decodeManifests reads the objects of one file: YAML or JSON, several
// documents, lists of any kind. Kinds that export does not read are skipped.
// An error names the document, counted from 1, and the field.
func decodeManifests(data []byte) (map[key]metav1.Object, error) {
	objects := map[key]metav1.Object{}
	documents := yamlstream.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err == nil {
			err = decodeDocument(document, objects)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

func decodeDocument(document []byte, into map[key]metav1.Object) error {
	data, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return err
	}
	if string(data) == "null" {
		return nil // nothing but comments
	}
	return decodeObject(data, into)
}

// typeMeta is what tells objects and lists apart.
type typeMeta struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Items      []json.RawMessage `json:"items"`
}

func decodeObject(data []byte, into map[key]metav1.Object) error {
	var t typeMeta
	if err := json.Unmarshal(data, &t); err != nil {
		return fmt.Errorf("is no Kubernetes object: %w", err)
	}
	if t.Kind == "" {
		return errors.New("kind is missing; write apiVersion and kind")
	}
	if strings.HasSuffix(t.Kind, "List") && t.Items != nil {
		return decodeItems(t, into)
	}
	object, err := newObject(t)
	if object == nil || err != nil {
		return err
	}
	if err := decodeInto(data, object); err != nil {
		return fmt.Errorf("%s: %w", keyOf(object), err)
	}
	return addObject(object, into)
}

// decodeItems reads the items of a list. Those of a typed list, such as a
// ServiceList, may leave out what the list's type says.
func decodeItems(list typeMeta, into map[key]metav1.Object) error {
	for i, item := range list.Items {
		object := typed(item, list)
		if isList(object) {
			return fmt.Errorf("items[%d]: a list within a list; write its items into the outer one", i)
		}
		if err := decodeObject(object, into); err != nil {
			return fmt.Errorf("items[%d]: %w", i, err)
		}
	}
	return nil
}

// isList reports whether an item is a list itself. Each level of lists within
// lists would read all that is below it once more.
func isList(item []byte) bool {
	var t struct {
		Kind  string          `json:"kind"`
		Items json.RawMessage `json:"items"`
	}
	return json.Unmarshal(item, &t) == nil && strings.HasSuffix(t.Kind, "List") && t.Items != nil
}

func typed(item json.RawMessage, list typeMeta) []byte {
	members := map[string]json.RawMessage{}
	if list.Kind == "List" || json.Unmarshal(item, &members) != nil || members["kind"] != nil {
		return item
	}
	members["kind"], _ = json.Marshal(strings.TrimSuffix(list.Kind, "List"))
	members["apiVersion"], _ = json.Marshal(list.APIVersion)
	filled, err := json.Marshal(members)
	if err != nil {
		return item
	}
	return filled
}

// newObject returns an empty object of a kind that export reads, or nil.
func newObject(t typeMeta) (metav1.Object, error) {
	object, versions := newCustom(t.Kind)
	if object == nil {
		object, versions = newBuiltin(t.Kind)
	}
	if object == nil || slices.Contains(versions, t.APIVersion) {
		return object, nil
	}
	if foreign(t.APIVersion, versions[0]) {
		return nil, nil // another group's kind of that name
	}
	return nil, fmt.Errorf("apiVersion is %q; of kind %s only %s is read", t.APIVersion, t.Kind, strings.Join(versions, " and "))
}

// foreign reports whether a version is of another group than a known one.
func foreign(version, known string) bool {
	group, _, grouped := strings.Cut(version, "/")
	wanted, _, inGroup := strings.Cut(known, "/")
	if !inGroup {
		return grouped && group != "core"
	}
	return grouped && group != wanted && wanted != discoveryv1.GroupName
}

func newBuiltin(kind string) (metav1.Object, []string) {
	core := []string{"v1"}
	switch kind {
	case "Service":
		return &corev1.Service{}, core
	case "Namespace":
		return &corev1.Namespace{}, core
	case "Node":
		return &corev1.Node{}, core
	case "Pod":
		return &corev1.Pod{}, core
	case "EndpointSlice":
		return &discoveryv1.EndpointSlice{}, []string{"discovery.k8s.io/v1"}
	}
	return nil, nil
}

// decodeInto is strict about kinds of which all members are known.
func decodeInto(data []byte, object metav1.Object) error {
	if custom, _ := newCustom(kindOf(object)); custom != nil {
		return strictjson.UnmarshalCaseSensitivePreserveInts(data, object)
	}
	strict, err := strictjson.UnmarshalStrict(data, object)
	return errors.Join(append(strict, err)...)
}

func addObject(object metav1.Object, into map[key]metav1.Object) error {
	if object.GetNamespace() == "" && namespaced(object) {
		object.SetNamespace(metav1.NamespaceDefault)
	}
	k := keyOf(object)
	if err := checkObject(object); err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	if _, twice := into[k]; twice {
		return fmt.Errorf("%s: occurs twice in this file; remove one", k)
	}
	into[k] = object
	return nil
}

func namespaced(object metav1.Object) bool {
	switch kindOf(object) {
	case "Namespace", "Node", "CiliumNode", "CiliumIdentity", "CiliumEndpointSlice":
		return false
	}
	return true
}
