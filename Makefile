# What a person or CI calls. Each target does its own set-up and may be run
# again; `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

# All is built as it is shipped, without cgo, but for what runs under the race detector, which needs it: so each dependency
# is compiled twice, and not once more for each other form.
export CGO_ENABLED ?= 0
RACE_GO := CGO_ENABLED=1 go

# Pinned, so that a new release does not break an old commit.
STATICCHECK_VERSION := v0.8.2
STATICCHECK := build/bin/staticcheck-$(STATICCHECK_VERSION)

NFPM_VERSION := v2.43.0
NFPM := build/bin/nfpm-$(NFPM_VERSION)
# What git describe says, as Debian compares versions; before the first tag 0, and then the commit.
DEB_VERSION ?= $(shell git describe --tags --dirty 2>/dev/null | sed 's/^v//' | grep . || echo "0~$$(git rev-list --count HEAD)")

# The versions that `make test` fetches, and the ones that its tests run with
# where they do not ask for one: a list such as 15,16,17,18.
PG ?= 15 16 17 18
PGBRIDGE_TEST_PG ?= 15,18
export PGBRIDGE_TEST_PG

# What is tested under the race detector: all packages but the cluster tests, which take minutes and come last, and PURE.
UNIT := $$(go list ./... | grep -vE '/(integration|origin|wire|conflict|topology)$$')

# Packages without goroutines, which imports_test.go sees to, and the tests of apply that are alike: nothing there can race,
# and the race detector would take minutes.
PURE := ./origin ./wire ./conflict ./topology
PLAIN := ^TestSimulation|AgainstHistory$$

# What one fuzz test, and one run of the soak, may take.
FUZZTIME ?= 20s
SOAKTIMEOUT ?= 6h
# How long each micro-benchmark runs, or 100x: that often.
MICROBENCHTIME ?= 1s
# How many schedules are simulated, from which seed on.
SCHEDULES ?= 20000
SEED ?= 1
# Which cluster tests, and how: make integration RUN=TestCrash RACE=-race
RUN ?= .
RACE ?=

.PHONY: help build demo test lint unit integration compose browser pictures fuzz sim soak bench bench-long bench-rivals deb deb-test scale microbench postgres clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/pgbridge, a static binary
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/pgbridge ./cmd/pgbridge

demo: build ## three real primaries, three bridges, one conflict, one crash: under a minute
	@scripts/postgres.sh 18 || echo 'the demo looks for an installed PostgreSQL instead' >&2
	bin/pgbridge demo $(DEMOFLAGS)

test: lint unit compose integration ## everything that has to pass before a commit

lint: $(STATICCHECK) ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l .); \
		if [ -n "$$unformatted" ]; then echo "gofmt -w is needed for:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(STATICCHECK) ./...
	cd integration/compose && $(CURDIR)/$(STATICCHECK) ./...

$(STATICCHECK):
	@mkdir -p $(@D)
	@rm -rf build/tmp-bin
	GOBIN=$(CURDIR)/build/tmp-bin go install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
	@mv build/tmp-bin/staticcheck $@ && rmdir build/tmp-bin

$(NFPM):
	@mkdir -p $(@D)
	@rm -rf build/tmp-bin
	GOBIN=$(CURDIR)/build/tmp-bin go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	@mv build/tmp-bin/nfpm $@ && rmdir build/tmp-bin

unit: postgres ## each package by itself, with the race detector where goroutines meet
	$(RACE_GO) test -race -vet=off -count=1 -timeout 20m -skip '$(PLAIN)' $(UNIT)
	go test -vet=off -count=1 $(PURE)
	go test -vet=off -count=1 -run '$(PLAIN)' ./apply

integration: postgres ## bridges between real primaries; RUN=TestName picks some, RACE=-race
	$(if $(RACE),$(RACE_GO),go) test $(RACE) -vet=off -count=1 -timeout 60m -parallel 6 -run '$(RUN)' ./integration

compose: ## docker-compose.yml against the rules of compose itself
	cd integration/compose && go vet ./... && go test -vet=off -count=1 ./...

# How long is typed in each run of the editor's test, and how many runs there are.
TYPING ?= 30
RUNS ?= 1

browser: build $(STATICCHECK) ## what is shown in a browser, in Chromium; RUNS=20 for all of it
	scripts/postgres.sh 18
	scripts/chromium.sh
	scripts/axe.sh build/axe.min.js
	cd integration/browser && go vet -tags pictures ./... && $(CURDIR)/$(STATICCHECK) ./... && PGBRIDGE=$(CURDIR)/bin/pgbridge PGBRIDGE_TEST_SECONDS=$(TYPING) \
		PGBRIDGE_TEST_AXE=$(CURDIR)/build/axe.min.js go test -vet=off -count=$(RUNS) -v -timeout 2h -run '$(RUN)' ./...

pictures: build ## makes the pictures in docs/images again
	scripts/postgres.sh 18
	scripts/chromium.sh
	cd integration/browser && PGBRIDGE=$(CURDIR)/bin/pgbridge PGBRIDGE_TEST_PICTURES=$(CURDIR)/docs/images go test -vet=off -count=1 -tags pictures -run Picture ./...

fuzz: ## each fuzz test for FUZZTIME
	@for package in $$(go list ./...); do \
		for test in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$test"; \
			go test -run '^$$' -fuzz "^$$test\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

sim: ## simulate SCHEDULES random schedules from SEED on: conflicts, crashes, clocks; prints what diverged
	go test -count=1 -v -timeout 24h -run '^TestSimulation$$' ./apply -sim.schedules=$(SCHEDULES) -sim.seed=$(SEED)

soak: postgres ## the long versions of the cluster tests: many crashes, big transactions
	PGBRIDGE_TEST_SOAK=1 go test -count=1 -v -timeout $(SOAKTIMEOUT) -run '$(RUN)' ./integration ./integration/bench

bench: build ## against native logical replication, to build/bench.json and bench.svg
	scripts/postgres.sh 18
	@mkdir -p build
	go run ./integration/bench $(BENCHFLAGS)

bench-long: build ## the lines that take long: a backlog, steady load, idle bridges, many peers
	scripts/postgres.sh 18
	@mkdir -p build
	go run ./integration/bench -long -out build/bench-long.json $(BENCHFLAGS)

bench-rivals: build ## against pglogical and Bucardo too, all on PostgreSQL 15, to build/bench-rivals.json
	scripts/rivals.sh
	@mkdir -p build
	go run ./integration/bench -major 15 -rivals native,pgbridge,pglogical,bucardo -out build/bench-rivals.json $(BENCHFLAGS)

deb: build $(NFPM) ## build/pgbridge_*.deb, a Debian package
	@mkdir -p build/completion
	bin/pgbridge completion bash > build/completion/pgbridge.bash
	bin/pgbridge completion zsh > build/completion/_pgbridge
	bin/pgbridge completion fish > build/completion/pgbridge.fish
	rm -rf build/man
	bin/pgbridge man build/man
	gzip -9n build/man/*.1
	DEB_ARCH=$$(go env GOARCH) DEB_VERSION=$(DEB_VERSION) $(NFPM) package --config deploy/deb/nfpm.yaml --packager deb --target build/

deb-test: ## as root: installs the package in this system, runs two nodes with it, upgrades it, and purges it
	scripts/postgres.sh 18
	$(MAKE) deb DEB_VERSION=0~test1
	$(MAKE) deb DEB_VERSION=0~test2
	go run ./integration/debtest build/pgbridge_0~test1_$$(go env GOARCH).deb build/pgbridge_0~test2_$$(go env GOARCH).deb

scale: ## works out what clusters cost that are too large to be tried, as a table for docs/scale.md
	go run ./integration/scale

microbench: ## codec, vectors, capture's rows and apply's plans, with their allocations; RUN=BenchmarkPlan picks some
	go test -run '^$$' -bench '$(RUN)' -benchmem -benchtime $(MICROBENCHTIME) ./wire ./origin ./capture ./apply

postgres: ## fetch the PostgreSQL binaries that tests run, into a cache outside the repository
	@scripts/postgres.sh $(PG)

clean: ## remove what make built (the PostgreSQL cache stays)
	rm -rf bin build
