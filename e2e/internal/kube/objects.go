package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// AddNamespace creates a namespace and waits until pods can be made in it.
func (k *Cluster) AddNamespace(ctx context.Context, name string) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := k.Client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	return poll(ctx, 20*time.Millisecond, func() error {
		_, err := k.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// AddNode creates a node with its internal addresses and pod CIDRs.
func (k *Cluster) AddNode(ctx context.Context, name string, addrs []netip.Addr, pods []netip.Prefix) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, p := range pods {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
	}
	node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	node.Status = corev1.NodeStatus{
		Addresses:  internal(addrs),
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
	}
	_, err := k.Client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	return err
}

// SetNodeAddresses replaces a node's addresses by internal ones.
func (k *Cluster) SetNodeAddresses(ctx context.Context, name string, addrs []netip.Addr) error {
	// The list is merged by its elements' types, so one patch removes what was.
	list := []any{map[string]string{"$patch": "replace"}}
	for _, a := range internal(addrs) {
		list = append(list, a)
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": list}})
	if err != nil {
		return err
	}
	_, err = k.Client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func internal(addrs []netip.Addr) []corev1.NodeAddress {
	var all []corev1.NodeAddress
	for _, a := range addrs {
		all = append(all, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return all
}

// Port is one port of a service; its target port is the pods' number.
type Port struct {
	Name     string
	Protocol corev1.Protocol
	Port     int32
	Target   int32
}

// Service describes a dual-stack service that selects pods by label app=Name.
type Service struct {
	Namespace, Name string
	Annotations     map[string]string
	Ports           []Port
	NoSelector      bool // its slices are made by hand
	NodePorts       bool
}

// AddService creates a service and returns it with its cluster IPs.
func (k *Cluster) AddService(ctx context.Context, s Service) (*corev1.Service, error) {
	dual := corev1.IPFamilyPolicyRequireDualStack
	object := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Annotations: s.Annotations},
		Spec:       corev1.ServiceSpec{IPFamilyPolicy: &dual, Ports: s.ports()},
	}
	if s.NodePorts {
		object.Spec.Type = corev1.ServiceTypeNodePort
	}
	if !s.NoSelector {
		object.Spec.Selector = map[string]string{"app": s.Name}
	}
	return k.Client.CoreV1().Services(s.Namespace).Create(ctx, object, metav1.CreateOptions{})
}

func (s Service) ports() []corev1.ServicePort {
	var ports []corev1.ServicePort
	for _, p := range s.Ports {
		port := corev1.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port}
		port.TargetPort.IntVal = p.Target
		ports = append(ports, port)
	}
	return ports
}

// DeleteService deletes a service.
func (k *Cluster) DeleteService(ctx context.Context, namespace, name string) error {
	return k.Client.CoreV1().Services(namespace).Delete(ctx, name, metav1.DeleteOptions{})
}

// Annotate sets annotations of a service; an empty value removes one.
func (k *Cluster) Annotate(ctx context.Context, namespace, name string, annotations map[string]string) error {
	values := map[string]any{}
	for key, value := range annotations {
		values[key] = value
		if value == "" {
			values[key] = nil
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": values}})
	if err != nil {
		return err
	}
	_, err = k.Client.CoreV1().Services(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// Pod describes a pod of the service named App.
type Pod struct {
	Namespace, Name, App, Node string
	Addrs                      []netip.Addr
	Grace                      int64 // seconds that a deleted pod stays terminating
}

// AddPod creates a pod and makes it ready.
func (k *Cluster) AddPod(ctx context.Context, p Pod) error {
	no := false
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: map[string]string{"app": p.App}},
		Spec: corev1.PodSpec{
			NodeName:                      p.Node,
			Containers:                    []corev1.Container{{Name: "main", Image: "none"}},
			TerminationGracePeriodSeconds: &p.Grace,
			AutomountServiceAccountToken:  &no,
		},
	}
	if _, err := k.Client.CoreV1().Pods(p.Namespace).Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create pod %s: %w", p.Name, err)
	}
	return k.patchStatus(ctx, p.Namespace, p.Name, p.status(true))
}

// SetReady writes a pod's readiness as its kubelet would.
func (k *Cluster) SetReady(ctx context.Context, p Pod, ready bool) error {
	return k.patchStatus(ctx, p.Namespace, p.Name, p.status(ready))
}

func (p Pod) status(ready bool) corev1.PodStatus {
	condition := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}
	if ready {
		condition.Status = corev1.ConditionTrue
	}
	status := corev1.PodStatus{
		Phase:      corev1.PodRunning,
		Conditions: []corev1.PodCondition{condition},
		PodIP:      p.Addrs[0].String(),
	}
	for _, a := range p.Addrs {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return status
}

func (k *Cluster) patchStatus(ctx context.Context, namespace, name string, status corev1.PodStatus) error {
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = k.Client.CoreV1().Pods(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// DeletePod asks for a pod's deletion: at once when its grace period is 0,
// else it stays terminating until [Cluster.FinishPod].
func (k *Cluster) DeletePod(ctx context.Context, p Pod) error {
	return k.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})
}

// FinishPod removes a pod at once.
func (k *Cluster) FinishPod(ctx context.Context, p Pod) error {
	now := int64(0)
	return k.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
}
