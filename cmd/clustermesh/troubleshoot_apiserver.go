package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// maxReadiness bounds what is read of an apiserver's answer.
const maxReadiness = 1 << 20

// checkApiserver asks an apiserver what it lacks, and looks at its disk.
func (f *troubleshootFlags) checkApiserver(ctx context.Context, p *findingPrinter) {
	if f.apiserver != "" {
		askApiserver(ctx, f.apiserver, f.timeout, p)
	}
	if f.dataDir != "" {
		p.add(diskFinding("--data-dir", f.dataDir))
	}
}

func askApiserver(ctx context.Context, address string, limit time.Duration, p *findingPrinter) {
	v := findingView{Group: "apiserver", Check: "apiserver-answers", Title: "the apiserver answers", Outcome: outcomePass}
	text, err := fetch(ctx, strings.TrimSuffix(address, "/")+"/readyz", limit)
	if err != nil {
		v.Outcome, v.Cause, v.Evidence = outcomeFail, "the apiserver does not answer", err.Error()
		v.Remedy = "start clustermesh-apiserver and read its log; give the address of its --http"
		p.add(v)
		return
	}
	p.add(v)
	for _, v := range readinessFindings(text) {
		p.add(v)
	}
}

// fetch returns a short document, whatever its status.
func fetch(ctx context.Context, url string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxReadiness))
	if err == nil && answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusServiceUnavailable {
		err = fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return string(text), err
}

// readinessFindings reads the lines of an apiserver's /readyz.
func readinessFindings(text string) []findingView {
	ready := findingView{Group: "apiserver", Check: "apiserver-ready", Title: "everything was published", Outcome: outcomePass}
	var found []findingView
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		kind, what, _ := strings.Cut(lines.Text(), ": ")
		switch kind {
		case "ready":
		case "not ready":
			ready.Outcome, ready.Cause = outcomeFail, "the apiserver is not ready"
			ready.Effect, ready.Remedy = "no agent hears this cluster anew; those that did keep what they know", "see what is missing, and the apiserver's log"
		case "identity source":
			ready.Evidence = lines.Text()
		case "missing":
			found = append(found, findingView{Group: "apiserver", Check: "apiserver-missing", Title: "nothing is missing", Outcome: outcomeFail,
				Cause: "the apiserver is not ready: " + what, Remedy: "see the apiserver's log; check that it reaches its source (--kubeconfig, --manifests) and can write --data-dir"})
		case "problem":
			v := problemFinding(what, "see the apiserver's log and the object that is named")
			v.Group, v.Check, v.Title = "apiserver", "apiserver-problem", "the apiserver reports no problem"
			found = append(found, v)
		}
	}
	if ready.Evidence == "" {
		ready.Outcome, ready.Cause, ready.Evidence, ready.Remedy = outcomeFail, "something else answers", "the answer is not an apiserver's", "give the address of clustermesh-apiserver's --http"
	}
	return append([]findingView{ready}, found...)
}
