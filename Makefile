# Starlight. `make help` lists the targets.

# A go command that go.mod is content with, found or fetched by integration/setup.
GO       ?= $(shell integration/go-toolchain 2>/dev/null || echo go)
BIN      ?= bin
VERSION  ?= $(shell git describe --tags --match 'v[0-9]*' --always --dirty 2>/dev/null | sed 's/^v//')
COMMIT   ?= $(shell git rev-parse HEAD 2>/dev/null)
# Build tags of containerd, such as "no_btrfs no_zfs".
TAGS     ?=

CONTAINERD         := github.com/containerd/containerd/v2
CONTAINERD_VERSION := $(shell sed -n 's|^[[:space:]]*$(CONTAINERD) v||p' go.mod)

# What comes from containerd says so: its version, and ours as build metadata.
# ctr complains when its version is not the daemon's, so all three share it.
UPSTREAM_LDFLAGS := -s -w \
	-X $(CONTAINERD)/version.Package=github.com/starlight-delta/starlight \
	-X $(CONTAINERD)/version.Version=$(CONTAINERD_VERSION)+starlight.$(VERSION) \
	-X $(CONTAINERD)/version.Revision=$(COMMIT)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

GO_BUILD       := $(GO) build -trimpath $(if $(TAGS),-tags "$(TAGS)")
BUILD_UPSTREAM := $(GO_BUILD) -ldflags '$(UPSTREAM_LDFLAGS)'
BUILD_OWN      := CGO_ENABLED=0 $(GO_BUILD) -ldflags '$(LDFLAGS)'

BINARIES := $(addprefix $(BIN)/,containerd containerd-shim-runc-v2 ctr proxyd ctr-starlight)

.DEFAULT_GOAL := help
.PHONY: help build clean FORCE

help: ## Show this text.
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

build: $(BINARIES) ## Build bin/{containerd,containerd-shim-runc-v2,ctr,proxyd,ctr-starlight}.

# The go command knows what is up to date, so every target asks it.
$(BIN)/containerd: FORCE
	$(BUILD_UPSTREAM) -o $@ ./containerd-build

# The shim stays resident with every container: it is static and without gRPC, as upstream's.
$(BIN)/containerd-shim-runc-v2: FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -tags no_grpc -ldflags '$(UPSTREAM_LDFLAGS)' -o $@ $(CONTAINERD)/cmd/containerd-shim-runc-v2

$(BIN)/ctr: FORCE
	$(BUILD_UPSTREAM) -o $@ $(CONTAINERD)/cmd/ctr

$(BIN)/proxyd: FORCE
	$(BUILD_OWN) -o $@ ./proxyd

$(BIN)/ctr-starlight: FORCE
	$(BUILD_OWN) -o $@ ./contrib/ctr-starlight

# What is not in go.mod is installed in these versions.
GOLANGCI_VERSION := v2.15.0
GOLANGCI         := .cache/bin/golangci-lint-$(GOLANGCI_VERSION)

# Packages without integration/, whose tests need the binaries.
PACKAGES = $(shell $(GO) list ./... | grep -v '/integration$$')

.PHONY: setup test unit-test race-test integration-test integration-test-full test-kubelet test-buildkit bench demo lint

setup: ## Install what tests and demo need (apt; as root).
	integration/setup

test: setup ## Run all tests: unit, conformance, race and integration (as root).
	$(MAKE) unit-test race-test integration-test

unit-test: ## Run the tests of single packages, with the conformance suites.
	$(GO) test $(PACKAGES)

# Pure functions of bytes, with properties that take minutes under the detector.
NO_RACE       := proxyd/wire/toc plugins/internal/erofsimg
RACE_PACKAGES = $(filter-out $(NO_RACE:%=github.com/starlight-delta/starlight/%),$(PACKAGES))

race-test: ## The same with the race detector, where goroutines share something.
	CGO_ENABLED=1 $(GO) test -race $(RACE_PACKAGES)

integration-test: build ## Run the stories of integration/ with the quick corpus (as root).
	$(GO) test -short -timeout 30m ./integration

integration-test-full: build ## The same with the whole corpus (as root).
	integration/setup --corpus
	$(GO) test -timeout 60m ./integration

test-kubelet: setup build ## Run static pods on a real kubelet, which takes long to build (as root).
	STARLIGHT_KUBELET=1 $(GO) test -v -timeout 120m -run '^TestKubelet$$' ./integration

test-buildkit: setup build ## Build images with a real BuildKit, which takes long to build (as root).
	STARLIGHT_BUILDKIT=1 $(GO) test -v -timeout 60m -run '^TestBuildKit$$' ./integration

demo: ## Show fresh and update pulls beside stock containerd: make demo [IMAGE=ref UPDATE=ref] (as root).
	integration/setup
	$(MAKE) build
	PATH="$(dir $(shell command -v $(GO))):$$PATH" $(GO) run ./integration/demo $(if $(IMAGE),-image '$(IMAGE)') $(if $(UPDATE),-update '$(UPDATE)') $(if $(READY),-ready '$(READY)') $(DEMOFLAGS)

bench: ## Compare with rivals on emulated links: make bench [BENCHFLAGS="-images redis -runs 3"] (as root).
	integration/setup --corpus
	$(MAKE) build
	PATH="$(dir $(shell command -v $(GO))):$$PATH" $(GO) run ./integration/bench $(BENCHFLAGS)

lint: $(GOLANGCI) ## Run the linters.
	$(GOLANGCI) run ./...

$(GOLANGCI):
	@mkdir -p $(@D)
	GOBIN=$(CURDIR)/.cache/bin/golangci $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv .cache/bin/golangci/golangci-lint $@

clean: ## Remove what build made.
	rm -rf $(BIN)

FORCE:
