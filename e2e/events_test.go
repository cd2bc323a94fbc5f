package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// checkEvents: the owner of a service sees by Events what becomes of its export,
// written with the rights of the rendered role.
func (in *installation) checkEvents(t *testing.T) {
	const name = "rebel-shop"
	must(t, in.kube.AddNamespace(t.Context(), namespace))
	made, err := in.kube.AddService(t.Context(), kube.Service{Namespace: namespace, Name: name, Annotations: global(), Ports: webPorts(80, 53)})
	must(t, err)
	about := func(reason string) *corev1.Event { return in.awaitEvent(t, made, reason) }
	if e := about("Exported"); e.Type != corev1.EventTypeNormal || !strings.Contains(e.Message, "cluster east") {
		t.Errorf("the Event is %s: %q", e.Type, e.Message)
	}
	if e := about("NobodyImports"); e.Type != corev1.EventTypeWarning || !strings.Contains(e.Message, "2 seconds") {
		t.Errorf("the Event is %s: %q", e.Type, e.Message)
	}
	must(t, in.kube.Annotate(t.Context(), namespace, name, map[string]string{"service.cilium.io/affinity": "sideways"}))
	if e := about("InvalidAnnotation"); e.Type != corev1.EventTypeWarning || !strings.Contains(e.Message, `"sideways"`) {
		t.Errorf("the Event is %s: %q", e.Type, e.Message)
	}
	patch := []byte(`{"metadata":{"annotations":{"clustermesh.cilium.io/global":"false"}}}`)
	_, err = in.kube.Client.CoreV1().Namespaces().Patch(t.Context(), namespace, "application/merge-patch+json", patch, metav1.PatchOptions{})
	must(t, err)
	about("NamespaceNotGlobal")
	about("Withdrawn")
	if failed := readMetric(t, "127.0.0.1:9962", "clustermesh_event_errors_total"); failed > 0 {
		t.Errorf("%v Events could not be written", failed)
	}
}

// awaitEvent waits for an Event about a service.
func (in *installation) awaitEvent(t *testing.T, s *corev1.Service, reason string) *corev1.Event {
	t.Helper()
	selector := fmt.Sprintf("involvedObject.kind=Service,involvedObject.name=%s,involvedObject.uid=%s,reason=%s", s.Name, s.UID, reason)
	deadline := time.Now().Add(giveUp)
	for {
		list, err := in.kube.Client.CoreV1().Events(s.Namespace).List(t.Context(), metav1.ListOptions{FieldSelector: selector})
		must(t, err)
		if len(list.Items) > 0 {
			return &list.Items[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody is told %s of service %s within %v", reason, s.Name, giveUp)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
