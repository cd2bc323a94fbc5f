// Command kube is the Kubernetes control plane that the end-to-end tests talk
// to: the real etcd, kube-apiserver and kube-controller-manager as one
// multi-call binary, so that a test machine needs no container runtime.
//
// The first argument chooses the program; the rest are that program's own
// flags. It lives in a module of its own so that none of Kubernetes' server
// code reaches the product's go.mod.
package main

import (
	"fmt"
	"os"
	_ "time/tzdata" // the API server validates CronJob time zones

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics of the real binaries
	_ "k8s.io/component-base/metrics/prometheus/version"  // build info metric of the real binaries
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	program := os.Args[1]
	os.Args = os.Args[1:]
	switch program {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		run(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		run(controllermanager.NewControllerManagerCommand())
	default:
		usage()
	}
}

func run(c *cobra.Command) {
	os.Exit(cli.Run(c))
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: kube etcd|kube-apiserver|kube-controller-manager [flags]")
	os.Exit(2)
}
