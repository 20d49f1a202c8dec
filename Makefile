# Starlight. `make help` lists the targets.

GO       ?= go
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

clean: ## Remove what build made.
	rm -rf $(BIN)

FORCE:
