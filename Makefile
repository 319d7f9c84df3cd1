# Holdfast: see `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

OUTPUT := _output
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
LDFLAGS := -s -w -X main.version=$(VERSION)
# With grpc's tracing comes a library by which the linker has to keep all that nobody calls.
TAGS := grpcnotrace
# edgecore holds SQLite, which is C. Linked statically it runs on any distribution.
EDGE_TAGS := $(TAGS),netgo,osusergo,sqlite_omit_load_extension
EDGE_LDFLAGS := $(LDFLAGS) -linkmode external -extldflags "-static"
# The version is stamped above: what git thinks of the checkout must not make a
# build fail, nor a binary anew while tests run it.
REPEATABLE := -trimpath -buildvcs=false
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
ROOMS := ./...
FUZZTIME ?= 30s

.PHONY: help packages build cross test demo bench bench-scale fuzz lint generate clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

packages: ## install what building and testing need from Debian's packages (as root; quick when all is there)
	@build/packages/install.sh

build: ## build edgecore, cloudcore, holdfast, modbusmapper and controlplane into _output
	CGO_ENABLED=1 go build $(REPEATABLE) -tags $(EDGE_TAGS) -ldflags '$(EDGE_LDFLAGS)' -o $(OUTPUT)/edgecore ./edge/cmd/edgecore
	CGO_ENABLED=0 go build $(REPEATABLE) -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(OUTPUT)/ ./cloud/cmd/cloudcore ./common/cmd/holdfast ./edge/cmd/modbusmapper
	$(MAKE) --no-print-directory -C build/controlplane build VERSION=$(VERSION)
	@# By content, and in one step: tests may be running the binary that is there.
	@cmp -s build/controlplane/_output/controlplane $(OUTPUT)/controlplane || { \
	  cp build/controlplane/_output/controlplane $(OUTPUT)/controlplane.new; mv -f $(OUTPUT)/controlplane.new $(OUTPUT)/controlplane; }

cross: ## build edgecore, holdfast and modbusmapper for arm64 and armv7 into _output/linux-*
	$(call for_edge,arm64,,aarch64-linux-gnu)
	$(call for_edge,arm,7,arm-linux-gnueabihf)

# for_edge ARCH,ARM VERSION,C COMPILER PREFIX
define for_edge
	GOOS=linux GOARCH=$(1) GOARM=$(2) CGO_ENABLED=1 CC=$(3)-gcc go build $(REPEATABLE) -tags $(EDGE_TAGS) -ldflags '$(EDGE_LDFLAGS)' -o $(OUTPUT)/linux-$(1)$(addprefix v,$(2))/edgecore ./edge/cmd/edgecore
	GOOS=linux GOARCH=$(1) GOARM=$(2) CGO_ENABLED=0 go build $(REPEATABLE) -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(OUTPUT)/linux-$(1)$(addprefix v,$(2))/ ./common/cmd/holdfast ./edge/cmd/modbusmapper
endef

test: packages build ## run every test (as root)
	go test -race -timeout 45m $(ROOMS)
	$(MAKE) --no-print-directory -C build/controlplane test VERSION=$(VERSION)

demo: packages build ## show a node that loses its line and its power, and comes back (as root)
	@go run ./tests/demo

bench: packages build ## measure speed, memory and bytes on the line (as root)
	@go run ./tests/bench

bench-scale: packages build ## measure a hub with thousands of simulated edge nodes (some ten minutes)
	@go run ./tests/scale

fuzz: ## run every fuzz test for FUZZTIME (30s) each
	@grep -rl --include='*_test.go' '^func Fuzz' cloud common edge | while read -r file; do \
	  sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file" | while read -r name; do \
	    echo "$$file $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")"; \
	  done; done

lint: ## gofmt, go vet and staticcheck
	@unformatted=$$(gofmt -l cloud common edge tests build); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	go vet $(ROOMS)
	go run $(STATICCHECK) $(ROOMS)

generate: ## make the .pb.go files anew (needs protoc, libprotobuf-dev, protoc-gen-go and protoc-gen-go-grpc)
	protoc --go_out=. --go_opt=paths=source_relative common/wire/wire.proto
	protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative common/dmi/dmi.proto

clean: ## remove what was built
	rm -rf $(OUTPUT) build/controlplane/_output
