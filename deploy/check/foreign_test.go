package check

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// certificate has the members of cert-manager.io/v1 that the chart sets.
type certificate struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		SecretName string `json:"secretName"`
		IssuerRef  struct {
			Name  string `json:"name"`
			Kind  string `json:"kind"`
			Group string `json:"group"`
		} `json:"issuerRef"`
		Duration    metav1.Duration `json:"duration"`
		RenewBefore metav1.Duration `json:"renewBefore"`
		PrivateKey  struct {
			Algorithm      string `json:"algorithm"`
			Size           int    `json:"size"`
			RotationPolicy string `json:"rotationPolicy"`
		} `json:"privateKey"`
		Usages      []string `json:"usages"`
		CommonName  string   `json:"commonName"`
		DNSNames    []string `json:"dnsNames"`
		IPAddresses []string `json:"ipAddresses"`
	} `json:"spec"`
}

// serviceMonitor has the members of monitoring.coreos.com/v1 that the chart sets.
type serviceMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		JobLabel  string               `json:"jobLabel"`
		Selector  metav1.LabelSelector `json:"selector"`
		Endpoints []struct {
			Port     string          `json:"port"`
			Interval metav1.Duration `json:"interval"`
		} `json:"endpoints"`
	} `json:"spec"`
}

// prometheusRule has the members of monitoring.coreos.com/v1 that the chart sets.
type prometheusRule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ruleFile `json:"spec"`
}

// ruleFile is what Prometheus reads rules from.
type ruleFile struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []struct {
			Alert       string            `json:"alert"`
			Expr        string            `json:"expr"`
			For         string            `json:"for"`
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"rules"`
	} `json:"groups"`
}

// decodeForeign decodes a kind that is not Kubernetes' own, and says whether it is.
func decodeForeign(document []byte) (bool, error) {
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(document, &head); err != nil {
		return true, err
	}
	switch head.APIVersion + "/" + head.Kind {
	case "cert-manager.io/v1/Certificate":
		return true, yaml.UnmarshalStrict(document, &certificate{})
	case "monitoring.coreos.com/v1/PrometheusRule":
		return true, yaml.UnmarshalStrict(document, &prometheusRule{})
	case "monitoring.coreos.com/v1/ServiceMonitor":
		return true, yaml.UnmarshalStrict(document, &serviceMonitor{})
	}
	return false, nil
}

// certificates are the rendered certificates by the kind of their usage.
func certificates(t *testing.T, text string) map[string]certificate {
	t.Helper()
	out := map[string]certificate{}
	for _, d := range documents(text) {
		var c certificate
		if yaml.Unmarshal([]byte(d), &c) == nil && c.Kind == "Certificate" {
			out[c.Spec.Usages[len(c.Spec.Usages)-1]] = c
		}
	}
	return out
}

func nameOf(t *testing.T, o runtime.Object) string {
	t.Helper()
	accessor, err := meta.Accessor(o)
	must(t, err)
	return accessor.GetName()
}
