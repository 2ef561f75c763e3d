# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists the targets. demo, test and bench set up all they need;
# programs that are not part of Millrace are built from pinned modules into a
# cache outside of the tree.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

export MILLRACE_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/millrace
export MILLRACE_KUBE_BIN ?= $(MILLRACE_CACHE)/bin
# The tests, the demo and the benchmark run the programs that `make build` made.
export MILLRACE_BIN := $(CURDIR)/bin
# A checkout that belongs to another user must build too.
export GOFLAGS := $(strip $(GOFLAGS) $(if $(findstring -buildvcs,$(GOFLAGS)),,-buildvcs=false))
TOOLS := $(MILLRACE_CACHE)/tools

VERSION ?= $(shell git -c safe.directory="*" describe --tags --always --dirty 2>/dev/null || echo devel)
MODULE := github.com/millrace-project/millrace
GO_BUILD := CGO_ENABLED=0 go build -trimpath
TESTREPORT := build/testreport

# Extra flags for the go command's tests and for the demo and the benchmark:
# make test-unit TESTFLAGS='-race -run TestX', make bench ARGS=--help.
TESTFLAGS ?=
ARGS ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup setup-run setup-build setup-guest setup-cluster
setup: ## Install missing Debian packages (as root; says what is missing otherwise)
	@.ci/setup all
setup-run:
	@.ci/setup run
setup-build:
	@.ci/setup build
setup-guest:
	@.ci/setup guest
setup-cluster:
	@.ci/setup cluster

.PHONY: tools kube-binaries cluster-binaries e2e-binaries guest-kernels
tools: ## Build the pinned code generators and checkers into the cache
	@.ci/cached-build tools
kube-binaries: ## Build etcd, kube-apiserver, kube-proxy and kubectl into the cache
	@.ci/cached-build etcd
	@.ci/cached-build kubernetes
cluster-binaries: kube-binaries ## Build what else a real cluster runs: kubelet, controllers, CoreDNS, agnhost
	@.ci/cached-build node
	@.ci/cached-build coredns
e2e-binaries: ## Build Kubernetes' own end-to-end tests into the cache
	@.ci/cached-build e2e
guest-kernels: ## Fetch the kernels that virtual machines run, as Debian's packages, into the cache
	@.ci/guest-kernels

.PHONY: build
build: ## Build static binaries into bin/
	@$(GO_BUILD) -ldflags '$(LDFLAGS)' -o bin/millrace-agent ./agent
	@$(GO_BUILD) -ldflags '$(LDFLAGS)' -o bin/millrace-cni ./agent/cmd/millrace-cni
	@$(GO_BUILD) -ldflags '$(LDFLAGS)' -o bin/millrace-calculator ./services/calculator
	@$(GO_BUILD) -ldflags '$(LDFLAGS)' -o bin/millracectl ./services/millracectl
LDFLAGS = -s -w $(foreach m,services agent,-X $(MODULE)/$(m)/internal/buildinfo.version=$(VERSION))

.PHONY: test-programs
test-programs: build
	@$(GO_BUILD) -o bin/millrace-probe ./test/cmd/millrace-probe

.PHONY: generate generate-check
generate: setup-build tools ## Generate the protobuf code and the BPF objects anew
	@PATH="$(TOOLS):$$PATH" buf generate
	@PATH="$(TOOLS):$$PATH" go generate ./bpf/...
generate-check: setup-build tools ## Check that generated files are what `make generate` makes
	@.ci/generate-check

.PHONY: format
format: setup-build tools ## Format Go, C and protobuf files
	@gofmt -w $$(git ls-files -co --exclude-standard "*.go")
	@clang-format-19 -i $$(git ls-files -co --exclude-standard "bpf/c/*.c" "bpf/c/*.h")
	@$(TOOLS)/buf format -w

.PHONY: lint
lint: setup-build tools ## Check formatting, go vet, staticcheck, buf, shellcheck, module files
	@.ci/lint

.PHONY: test
test: ## Run everything that CI tests, and print a table of it
	@.ci/test

.PHONY: test-unit test-bpf test-e2e test-kube test-cluster test-deploy test-reliability test-kernels record-instructions soak
test-unit: $(TESTREPORT) ## Test what needs neither root nor a kernel feature
	@{ go test -json $(TESTFLAGS) ./proto/... ./calc/... ./services/... ./agent/... ; \
	(cd .ci/tools && GOWORK=off go test -json $(TESTFLAGS) ./testreport) ; } | $(TESTREPORT) stage unit
test-bpf: setup-run $(TESTREPORT) ## Test the BPF programs against this kernel (root)
	@go test -json -count 1 -p 1 $(TESTFLAGS) ./bpf/... | $(TESTREPORT) stage bpf
test-e2e: setup-run test-programs $(TESTREPORT) ## Test real traffic in clusters of namespaces (root)
	@go test -json -count 1 -p 1 -timeout 15m $(TESTFLAGS) $$(go list ./test/... | grep -Ev '/test/(kube|reliability|kernels|cluster)') | $(TESTREPORT) stage e2e
test-kube: setup-run test-programs kube-binaries $(TESTREPORT) ## Test against a real kube-apiserver and etcd (root)
	@go test -json -count 1 -p 1 -timeout 15m $(TESTFLAGS) ./test/kube/... | $(TESTREPORT) stage kube
test-cluster: need-root setup-cluster test-programs cluster-binaries cluster-programs $(TESTREPORT) ## Test on a real cluster of three nodes, which all packages share (root)
	@trap 'bin/millrace-cluster down --name ci' EXIT; \
	bin/millrace-cluster up --name ci >build/cluster.log 2>&1 || { cat build/cluster.log >&2; exit 1; }; \
	MILLRACE_CLUSTER=ci go test -json -count 1 -p 1 -timeout 20m $(TESTFLAGS) ./test/cluster/... | $(TESTREPORT) stage cluster
test-reliability: setup-run test-programs kube-binaries $(TESTREPORT) ## Test restarts, faults, skew and growth under traffic, at CI's size (root)
	@go test -json -count 1 -p 1 -timeout 20m $(TESTFLAGS) ./test/reliability/... | $(TESTREPORT) stage reliability
test-kernels: setup-run setup-guest guest-kernels test-programs $(TESTREPORT) ## Test on other kernels, each in a virtual machine
	@go test -json -count 1 -p 1 -timeout 20m $(TESTFLAGS) ./test/kernels/... | $(TESTREPORT) stage kernels
record-instructions: setup-run setup-guest guest-kernels build ## Record what the kernels' verifiers make of the programs now (root)
	@MILLRACE_RECORD_INSTRUCTIONS=1 MILLRACE_KERNELS_RUN=preflight go test -count 1 -timeout 20m -run 'TestKernels|TestInstructionsHere' ./test/kernels
soak: need-root setup-run test-programs kube-binaries $(TESTREPORT) ## The tests of test-reliability, of write order and of the programs, at full size (hours)
	@MILLRACE_SOAK=1 go test -json -count 1 -p 1 -timeout 8h $(TESTFLAGS) ./test/reliability/... ./test/kube/e2e ./agent/internal/dataplane/bpf ./bpf/... | $(TESTREPORT) stage soak
test-deploy: $(TESTREPORT) ## Test the image builder
	@(cd deploy/image && GOWORK=off go test -json $(TESTFLAGS) ./...) | $(TESTREPORT) stage deploy

.PHONY: release-fixtures
release-fixtures: need-root setup-run tools test-programs ## Keep what the present commit speaks, for later tests: RELEASE=v1.2.3
	@.ci/release-fixtures "$(RELEASE)"

.PHONY: $(TESTREPORT)
$(TESTREPORT):
	@cd .ci/tools && GOWORK=off $(GO_BUILD) -o ../../$(TESTREPORT) ./testreport

.PHONY: need-root
need-root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(firstword $(MAKECMDGOALS)): clusters of network namespaces need root" >&2; exit 1; }

.PHONY: demo demo-down
demo: need-root setup-run test-programs ## Show a cluster of three nodes serving; KEEP=1 leaves it up
	@$(if $(KEEP),cd .ci/tools && GOWORK=off $(GO_BUILD) -o $(CURDIR)/bin/grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl,true)
	@go run ./test/cmd/millrace-demo $(if $(KEEP),--keep) $(ARGS)
demo-down: ## Remove what `make demo KEEP=1` left
	@go run ./test/cmd/millrace-demo --down

.PHONY: cluster cluster-down cluster-programs e2e
cluster-programs:
	@$(GO_BUILD) -o bin/millrace-cluster ./test/cmd/millrace-cluster
cluster: need-root setup-cluster cluster-binaries cluster-programs ## Start a real Kubernetes cluster with Millrace; PROXY=nftables|iptables FAMILY=ipv4|ipv6|dual CNI=ptp|bridge
	@bin/millrace-cluster up $(if $(PROXY),--proxy $(PROXY)) $(if $(FAMILY),--family $(FAMILY)) $(if $(CNI),--cni $(CNI)) $(ARGS)
cluster-down: need-root cluster-programs ## Remove what `make cluster` started
	@bin/millrace-cluster down $(ARGS)
e2e: need-root cluster-programs e2e-binaries ## Run Kubernetes' own tests of networking on what `make cluster` started; FOCUS=regular-expression CONFORMANCE=1
	@$(GO_BUILD) -o bin/millrace-e2e ./test/cmd/millrace-e2e
	@bin/millrace-e2e $(if $(FOCUS),--focus "$$FOCUS") $(if $(CONFORMANCE),--conformance) $(ARGS)

.PHONY: bench
bench: setup-run test-programs kube-binaries ## Measure against kube-proxy and the bare network (build/bench.json)
	@go run ./test/cmd/millrace-bench $(ARGS)

.PHONY: images
images: ## Write OCI images of the calculator and the agent to build/images/ (ARCHS="amd64 arm64")
	@deploy/build-images "$(VERSION)" $(ARCHS)

.PHONY: clean
clean: ## Remove what was built in the tree; the cache stays
	@rm -rf bin build
