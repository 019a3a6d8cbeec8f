# Lockkeeper's front door. `make` alone says what there is.
#
# Build products stay outside the checkout, in LOCKKEEPER_CACHE, and are used again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export LOCKKEEPER_CACHE ?= /var/cache/lockkeeper
export CARGO_TARGET_DIR ?= $(LOCKKEEPER_CACHE)/target
export INSTA_UPDATE ?= no
# A build cache that another checkout used too would look for golden files there.
export INSTA_WORKSPACE_ROOT := $(CURDIR)
# The same courses of events in every `make test`; `make explore` looks for new ones.
export PROPTEST_RNG_SEED ?= 7

TARGET := x86_64-unknown-linux-musl
OUT := $(CARGO_TARGET_DIR)/$(TARGET)/release
LAB := $(OUT)/lab
FROM ?= v1.35.4
TO ?= v1.36.3

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: demo
demo: setup build ## Build all, bring up a real three-node cluster, upgrade it on the screen; CUTOVER=1: traffic between two clusters
	@$(LAB) demo --from $(FROM) --to $(TO) $(if $(CUTOVER),--cutover)

.PHONY: test
test: ## Everything that CI runs: lints, unit and property tests, chart, policies, alerts, quick lab scenarios
	@bash chaos-tests/timed.sh setup      "$(MAKE) setup"
	@bash chaos-tests/timed.sh lint       "$(MAKE) lint"
	@bash chaos-tests/timed.sh unit       "$(MAKE) unit"
	@bash chaos-tests/timed.sh build      "$(MAKE) build"
	@bash chaos-tests/timed.sh binaries   "$(LAB) build"
	@bash chaos-tests/timed.sh store      "$(MAKE) store-test"
	@bash chaos-tests/timed.sh dashboards "$(MAKE) dashboards"
	@bash chaos-tests/timed.sh policies   "$(MAKE) policies"
	@bash chaos-tests/timed.sh chart      "$(MAKE) chart"
	@bash chaos-tests/timed.sh lab        "$(LAB) run --quick"

.PHONY: chaos
chaos: setup build ## Every lab scenario; SEED=N repeats a run
	@$(LAB) build
	@$(MAKE) explore
	@$(MAKE) real
	@$(LAB) run --all $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: setup build ## Measure against kubeadm on the same lab; prints JSON
	@$(LAB) build
	@$(LAB) bench --from $(FROM) --to $(TO)
	@$(MAKE) bench-etcd
	@$(MAKE) bench-parity

.PHONY: bench-etcd
bench-etcd: setup ## Backup and restore of 1 GiB against the stream alone and against etcdctl, zstd and an upload; MIB=N
	@cargo build --locked --release --target $(TARGET) -p lockkeeper-chaos-tests
	@$(LAB) build
	@LOCKKEEPER_TEST_BIN="$$($(LAB) bin-dir)" LOCKKEEPER_TEST_MIB=$(or $(MIB),1024) \
	  cargo test --locked --release --target $(TARGET) -p lockkeeper --test etcd_backup -- --ignored --nocapture figures

.PHONY: bench-parity
bench-parity: setup ## Two clusters of 20,000 objects each compared, against kubectl get -o yaml of both and diff; OBJECTS=N
	@cargo build --locked --release --target $(TARGET) -p lockkeeper-chaos-tests
	@eval "$$($(LAB) env)" && LOCKKEEPER_TEST_ETCD=$$ETCD LOCKKEEPER_TEST_APISERVER=$$KUBE_APISERVER \
	  LOCKKEEPER_TEST_KUBECTL=$$KUBECTL LOCKKEEPER_TEST_OBJECTS=$(or $(OBJECTS),20000) \
	  cargo test --locked --release --target $(TARGET) -p lockkeeper --test parity -- --ignored --nocapture figures

.PHONY: setup
setup: ## Install what the build and the lab need (Debian, as root)
	@bash chaos-tests/setup.sh

.PHONY: build
build: ## The static binaries: lockkeeper and lab
	@cargo build --locked --release --target $(TARGET) -p lockkeeper -p lockkeeper-chaos-tests

.PHONY: lint
lint: ## Format, clippy, generated files
	@cargo fmt --all --check
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@bash helm/sync.sh --check

.PHONY: unit
unit: ## Unit, property and golden tests
	@cargo test --locked --workspace

.PHONY: explore
explore: ## The property tests with courses of events that nobody has seen yet
	@env -u PROPTEST_RNG_SEED cargo test --locked -p lockkeeper-policies -p lockkeeper --lib

.PHONY: store-test
store-test: ## Snapshots against a real etcd and a real S3 server
	@LOCKKEEPER_TEST_BIN="$$($(LAB) bin-dir)" cargo test --locked -p lockkeeper --test etcd_backup

.PHONY: dashboards
dashboards: ## Alerts with promtool, dashboards and runbooks against the metrics that exist
	@bash dashboards/lint.sh

.PHONY: policies
policies: ## Admission policies against a real API server, and that each case fails without them
	@eval "$$($(LAB) env)" && bash policies/admission/test.sh && bash policies/admission/test.sh --without-policies

.PHONY: chart
chart: ## The chart: rendered, installed and upgraded by a real helm on a real API server
	@eval "$$($(LAB) env)" && bash helm/test.sh

.PHONY: real
real: ## Election, API failover, parity, gates and external-dns against real API servers that die and freeze (5 minutes)
	@eval "$$($(LAB) env --real)" && export LOCKKEEPER_TEST_ETCD=$$ETCD LOCKKEEPER_TEST_APISERVER=$$KUBE_APISERVER \
	  LOCKKEEPER_TEST_EXTERNAL_DNS=$$EXTERNAL_DNS \
	  && cargo test --locked -p lockkeeper --test real -- --ignored --test-threads 1 \
	  && cargo test --locked -p lockkeeper --test parity -- --ignored --skip figures

.PHONY: generate
generate: ## Write everything that is generated: CRD manifests, the chart's copies, the list of metrics
	@cargo run --locked -q -p lockkeeper-crds --bin crds crds/manifests
	@bash helm/sync.sh

.PHONY: deny
deny: ## Licences and banned crates of everything that is linked in
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	@cargo deny check bans licenses sources

.PHONY: down
down: ## Take down what the demo has left up
	@$(LAB) down
