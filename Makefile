# What a contributor types. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build generate fmt lint check-generated test test-unit test-race bench-once e2e interop interop-build kube bench demo clean
.PHONY: e2e-build e2e-job e2e-alerts e2e-rest interop-run test-bare operator release-check release vulncheck campaign-fuzz deploy-check deploy-generate observe-generate reference-generate

GO        ?= go
CLANG     ?= clang-14
# The binaries carry their commit where the checkout is one that git trusts.
STAMP     := $(shell git status >/dev/null 2>&1 && echo true || echo false)
# Their version is the tag of that commit, or Go's name for it, unless it is given: make build VERSION=v1.2.3.
# Go does not look at the commit of a linked worktree; there git says it.
VERSION   :=
LINKED    := $(shell test -f .git && $(STAMP) && git describe --tags --always --dirty)
NAMED      = -s -w$(if $1, -X github.com/clustermesh/clustermesh/cmd/internal/cli.release=$1)
BINARIES  := clustermesh-apiserver clustermesh-agent clustermesh
BUILD     := CGO_ENABLED=0 $(GO) build -trimpath
# Everything but the end-to-end checks; what these are made of has unit tests too.
# The slowest come first, so that no processor has nothing to do in the end.
UNIT      := $(GO) list ./bpf ./kvstore/server ./cmd/clustermesh ./kvstore/conformance ./... | grep -v '/e2e$$'
# The Kubernetes control plane of the end-to-end tests is built once per content of its module.
KUBE_HASH := $(shell cat e2e/kube/go.mod e2e/kube/go.sum e2e/kube/main.go | sha256sum | cut -c1-16)
KUBE      := bin/kube-$(KUBE_HASH)
KUBE_VERSION := $(shell sed -n 's/^\tk8s.io\/kubernetes \(v[0-9.]*\)$$/\1/p' e2e/kube/go.mod)
KUBE_MAJOR   := $(word 1,$(subst ., ,$(KUBE_VERSION:v%=%)))
KUBE_MINOR   := $(word 2,$(subst ., ,$(KUBE_VERSION:v%=%)))
KUBE_LDFLAGS := -s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION) -X k8s.io/component-base/version.gitMajor=$(KUBE_MAJOR) -X k8s.io/component-base/version.gitMinor=$(KUBE_MINOR)
INTEROP   := cd e2e/interop && CLUSTERMESH_E2E_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 20m -v ./...
E2E       := $(GO) test -count=1 -timeout 25m -v ./e2e
# The same, of which a part runs beside others that need not build it again.
E2E_PART  := cd e2e && ../bin/e2e.test -test.timeout 25m -test.v
# Known vulnerabilities: a database in Go's format, https:// or file://, and what reads it.
GOVULNDB    ?= https://vuln.go.dev
# How old that may be; more than 30 days only where no newer one can be had.
GOVULNDB_AGE ?=
GOVULNCHECK ?= golang.org/x/vuln/cmd/govulncheck@v1.8.0
# Each fuzz target runs that long with one worker; FUZZ picks some by name.
FUZZTIME  ?= 10m
FUZZ      ?= .
# The same tests as ever, with the long counts that CLUSTERMESH_CAMPAIGN asks for.
CAMPAIGNS := campaign-methods campaign-floods campaign-events campaign-rotations campaign-join campaign-poison campaign-upgrades campaign-storm campaign-rolling campaign-shares campaign-status
.PHONY: $(CAMPAIGNS) campaign-liveness

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  %-18s %s\n", $$1, $$2 }'

build: ## build the three binaries into bin/ (VERSION=v1.2.3 names the version where no tag does)
	@mkdir -p bin
	$(BUILD) -buildvcs=$(STAMP) -ldflags="$(call NAMED,$(or $(VERSION),$(LINKED)))" -o bin/ $(BINARIES:%=./cmd/%)

generate: ## regenerate the eBPF objects and the gRPC code (needs clang-14, libbpf-dev, protoc)
	GOBIN=$(CURDIR)/bin $(GO) install tool
	PATH=$(CURDIR)/bin:$$PATH $(GO) generate ./...

fmt: ## format the Go code
	gofmt -w $$(git ls-files -co --exclude-standard '*.go')

lint: ## check format, vet, the repository's shape, and golangci-lint where it is installed
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go' | xargs -r ls -d 2>/dev/null)); \
	  if [[ -n $$unformatted ]]; then echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) test .
	@if command -v golangci-lint >/dev/null; then golangci-lint run ./...; else echo "golangci-lint is not installed: skipped"; fi

check-generated: ## check that the committed generated code is what the generators make
	@if [[ $${CI:-} != true ]] && ! { command -v $(CLANG) && command -v protoc; } >/dev/null; then \
	  echo "$(CLANG) or protoc is not installed: generated code is not checked"; exit 0; fi; \
	copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	git ls-files -co --exclude-standard | xargs -r ls -d 2>/dev/null | tar -cf - -T - | tar -xf - -C "$$copy"; \
	$(MAKE) --no-print-directory -C "$$copy" generate >"$$copy/log" 2>&1 || { cat "$$copy/log"; exit 1; }; \
	for file in $$(git ls-files '*.pb.go' '*_bpfel.go' '*_bpfel.o'); do \
	  cmp "$$file" "$$copy/$$file" || { echo "$$file is not what make generate makes"; exit 1; }; done; \
	echo "generated code is current"

test: ## run everything: lint, unit tests with the race detector, end-to-end tests
	@mkdir -p bin
	@nice -n 10 $(MAKE) --no-print-directory kube operator interop-build e2e-build >bin/kube.log 2>&1 & kube=$$!; \
	trap 'kill $$kube 2>/dev/null || true' EXIT; \
	$(MAKE) --no-print-directory lint check-generated test-race test-bare bench-once build deploy-check; \
	echo "waiting for the Kubernetes control plane and Cilium's packages to be built"; \
	wait $$kube || { cat bin/kube.log; exit 1; }; \
	$(MAKE) --no-print-directory -j 4 --output-sync=target e2e-job e2e-alerts e2e-rest interop-run

test-unit: ## run the unit tests
	$(UNIT) | xargs $(GO) test

test-race: ## run the unit tests with the race detector (needs a C compiler)
	$(UNIT) | CGO_ENABLED=1 xargs $(GO) test -race -p 3 -timeout 15m

test-bare: ## run what a binary with cgo, which the race detector needs, has to skip
	CGO_ENABLED=0 $(GO) test -count=1 -v -run '^TestRepairBehindTheFilter$$' ./bpf | tee bin/test-bare.log
	@if grep -q -e '--- SKIP' bin/test-bare.log; then echo "it was skipped"; exit 1; fi

bench-once: ## run every benchmark once, so that none of them rots
	$(UNIT) | xargs $(GO) test -run '^$$' -bench . -benchtime 1x -timeout 10m

e2e: build kube operator ## run the end-to-end tests (root, eBPF, namespaces)
	$(E2E)

# The parts of the end-to-end tests wait more than they compute, and each has
# namespaces and cgroups of its own, so that make test runs them side by side.
e2e-build:
	@mkdir -p bin
	$(GO) test -c -o bin/e2e.test ./e2e

e2e-job:
	$(E2E_PART) -test.run '^TestMainJob$$'

e2e-alerts:
	$(E2E_PART) -test.run '^Test(Alerts|Guide)$$'

e2e-rest:
	$(E2E_PART) -test.skip '^Test(MainJob|Alerts|Guide)$$'

interop-run:
	$(INTEROP)

interop: build interop-run ## run Cilium's own code against the product (root, eBPF)

interop-build: ## compile that code and its tests, which takes minutes the first time
	cd e2e/interop && $(GO) test -run '^$$' -count=1 ./... >/dev/null

kube: $(KUBE) ## build the Kubernetes control plane that the end-to-end tests run
	@ln -sfn $(notdir $(KUBE)) bin/kube

$(KUBE):
	@mkdir -p bin
	@rm -f bin/kube-*
	cd e2e/kube && $(BUILD) -buildvcs=false -ldflags="$(KUBE_LDFLAGS)" -o $(CURDIR)/$(KUBE).part .
	mv $(KUBE).part $(KUBE)

operator: ## build helm and kubectl, with which the end-to-end tests type the install guide
	@mkdir -p bin
	cd deploy/check && $(GO) build -buildvcs=false -ldflags="-s -w" -o $(CURDIR)/bin/ ./operator

bench: build kube ## print the product's figures
	$(UNIT) | xargs $(GO) test -run '^$$' -bench . -benchmem
	$(E2E) -run 'TestMainJob/figures'

deploy-check: ## render the chart, the manifests and the units, and check what comes out
	cd deploy/check && $(GO) vet . && $(GO) test -count=1 .

deploy-generate: ## write deploy/kustomize/base, the golden renderings and docs/values.md from the chart
	cd deploy/check && $(GO) test -count=1 -run 'TestRender|TestBase|TestValues' . -update

observe-generate: ## write the inventory of metrics, alert rules and dashboards anew
	$(GO) test -count=1 -run TestMetricsInventory ./agent ./apiserver -update
	$(GO) test -count=1 -run TestGenerated ./deploy/observe -update

reference-generate: ## write the pages of reference of the commands anew
	$(GO) test -count=1 -run TestReference ./cmd/clustermesh ./cmd/clustermesh-agent ./cmd/clustermesh-apiserver -update

demo: build ## two clusters on this machine, no Kubernetes needed (root)
	bin/clustermesh demo

release-check: release vulncheck ## make the release twice and compare, describe it, look for known vulnerabilities

# A release is a commit; where git does not trust the checkout it is the files.
release: ## build the binaries in two places, compare them, and put them into bin/release/ with bills of materials
	@place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	if $(STAMP) && [[ -n $$(git status --porcelain) ]]; then echo "changes that are not committed are not in the release"; fi; \
	if $(STAMP); then git clone -q . "$$place/src"; \
	else mkdir "$$place/src"; git ls-files -co --exclude-standard | xargs -r ls -d 2>/dev/null | tar -cf - -T - | tar -xf - -C "$$place/src"; fi; \
	for copy in one two/in/another/place; do \
	  mkdir -p "$$place/$$copy"; cp -r "$$place/src" "$$place/$$copy/src"; \
	  (cd "$$place/$$copy/src" && GOCACHE="$$place/$$copy/cache" GOFLAGS= $(BUILD) -buildvcs=$(STAMP) -ldflags="$(call NAMED,$(VERSION))" -o ../bin/ $(BINARIES:%=./cmd/%)); \
	  (cd "$$place/$$copy/bin" && sha256sum $(BINARIES) >SHA256SUMS && cat SHA256SUMS); \
	done; \
	cmp "$$place/one/bin/SHA256SUMS" "$$place/two/in/another/place/bin/SHA256SUMS" || { echo "the two builds differ"; exit 1; }; \
	rm -rf bin/release; mkdir -p bin; cp -r "$$place/one/bin" bin/release
	$(GO) run ./deploy/release sbom $(BINARIES:%=bin/release/%)
	@cd bin/release && sha256sum $(BINARIES) *.cdx.json >SHA256SUMS && echo "bin/release/SHA256SUMS: the same bytes from both places"

vulncheck: ## look for known vulnerabilities in what the binaries call (GOVULNDB=https://... or file:///..., GOVULNDB_AGE=720h)
	@$(GO) run ./deploy/release database '$(GOVULNDB)' '$(GOVULNDB_AGE)'
	@planted=$$(mktemp -d); trap 'rm -rf "$$planted"' EXIT; id=$$($(GO) run ./deploy/release planted "$$planted"); \
	if $(GO) run $(GOVULNCHECK) -db "file://$$planted" $(BINARIES:%=./cmd/%) >"$$planted/log" 2>&1 || ! grep -q "$$id" "$$planted/log"; then \
	  cat "$$planted/log"; echo "$(GOVULNCHECK) does not find an advisory that was planted"; exit 1; fi; \
	echo "an advisory that was planted is found"
	$(GO) run $(GOVULNCHECK) -db '$(GOVULNDB)' $(BINARIES:%=./cmd/%)

campaign-fuzz: ## fuzz each target for FUZZTIME (10m) with one worker; FUZZ=regexp picks some
	@mkdir -p bin/campaigns; failed=; TIMEFORMAT='%R s, of the processor %U s'; \
	while IFS=: read -r file target; do \
	  package=$${file%/*}; target=$${target#func }; log=bin/campaigns/$${package//\//-}-$$target.log; \
	  [[ $$package/$$target =~ $(FUZZ) ]] || continue; \
	  echo "$$package $$target"; \
	  time $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s -parallel 1 ./$$package >$$log 2>&1 </dev/null || { failed+=" $$target"; grep -v '^fuzz: elapsed' $$log; }; \
	  grep '^fuzz: elapsed' $$log | tail -1 || true; \
	done < <(grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' agent apiserver certs cmd kvstore | sort); \
	if [[ -n $$failed ]]; then echo "failed:$$failed; the inputs are in testdata/fuzz of their packages"; exit 1; fi; echo "no target failed"

campaign-methods: ## every method, path and range as every class of reader, many times
campaign-methods: PACKAGE = kvstore/server
campaign-methods: TESTS   = ^TestA0[123]_|^TestA11_

campaign-floods: ## floods, slow readers and churn, many times
campaign-floods: PACKAGE = kvstore/server
campaign-floods: TESTS   = ^TestA0[456]_|^TestA10_

campaign-events: ## what a cluster that floods an agent with changes does to the others, long
campaign-events: PACKAGE = agent
campaign-events: TESTS   = ^TestR07_FloodOf

campaign-rotations: ## bad, expired, revoked and rotated certificates, many times
campaign-rotations: PACKAGE = kvstore/server
campaign-rotations: TESTS   = ^TestA0[789]_

campaign-join: ## two clusters become peers by commands, in less than 5 s
campaign-join: PACKAGE = cmd/clustermesh
campaign-join: TESTS   = ^TestJoinScripts

campaign-poison: ## what a hostile cluster may say to an agent, many times
campaign-poison: PACKAGE = agent/mesh
campaign-poison: TESTS   = Poison

campaign-upgrades: ## upgrades, kills and weighted draws in the kernel under load, many times (root, eBPF)
campaign-upgrades: PACKAGE = bpf
campaign-upgrades: TESTS   = ^TestUpgradeAndKillsUnderLoad$$|^TestWeightedShares$$

campaign-storm: ## a million changes of the maps against a model, with readers in the loop (root, eBPF)
campaign-storm: PACKAGE = bpf
campaign-storm: TESTS   = ^TestStorm

campaign-liveness: ## 3,000 simulated hours of loss and stalls: no living cluster is taken for dead
	$(GO) test -count=1 -timeout 1h -v -run Hour ./agent/liveness -hours 300

campaign-rolling: ## roll 1,000 services under clients for ten minutes, and again with kills of the writer (root, eBPF)
campaign-rolling: PACKAGE = bpf
campaign-rolling: TESTS   = ^TestRolling$$

campaign-shares: ## the kernel's shares by policies of 100,000 connects at each step of a tier's health (root, eBPF)
campaign-shares: PACKAGE = bpf
campaign-shares: TESTS   = ^TestPolicyShares$$

campaign-status: build kube ## 1,000 rounds of change, status --wait and clients at once in two real clusters (root, eBPF)
campaign-status: PACKAGE = e2e
campaign-status: TESTS   = ^TestMainJob$$/^status_acknowledged$$

$(CAMPAIGNS):
	@mkdir -p bin/campaigns
	CLUSTERMESH_CAMPAIGN=1 $(GO) test -count=1 -timeout 3h -v -run '$(TESTS)' ./$(PACKAGE) 2>&1 | tee bin/campaigns/$@.log
	@grep -q '^--- PASS' bin/campaigns/$@.log || { echo "no test matches $(TESTS) in $(PACKAGE)"; exit 1; }

clean: ## remove everything that was built
	rm -rf bin
