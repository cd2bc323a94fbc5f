// Command operator is what an operator types beside the product's own command:
// helm and kubectl as one multi-call binary, so that the end-to-end tests type
// the install guide with the real ones. The name that it is called by chooses.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	helm "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "helm":
		os.Exit(runHelm())
	case "kubectl":
		util.CheckErr(kubectl.NewDefaultKubectlCommand().Execute())
	default:
		fmt.Fprintf(os.Stderr, "it has to be called helm or kubectl, by a link for example, and not %s\n", name)
		os.Exit(2)
	}
}

// runHelm does as helm's own main function, and returns its exit code.
func runHelm() int {
	kube.ManagedFieldsManager = "helm"
	command, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	err = command.Execute()
	if coded, ok := errors.AsType[helm.CommandError](err); ok {
		return coded.ExitCode
	}
	if err != nil {
		return 1
	}
	return 0
}
