# Flux, from a checkout. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# What setup installs into the checkout comes first.
export PATH := $(CURDIR)/.tools/bin:$(PATH)

# CI builds exactly what Cargo.lock says; by hand cargo may bring it up to date.
LOCKED := $(if $(CI),--locked)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup: ## install what is missing on this machine (C compiler, nats-server, the users flux and flux-runner)
	@scripts/setup.sh all

.PHONY: setup-bench
setup-bench: ## install what only the benchmarks need (k6, musl)
	@scripts/setup.sh bench

.PHONY: build
build: ## release binaries flux, flux-gateway, flux-agent, flux-autoscaler
	cargo build --release $(LOCKED) -p flux-cli -p flux-gateway -p flux-agent -p flux-autoscaler --bins

.PHONY: check
check: ## format, clippy, doc and dependency rules; no warnings
	@scripts/setup.sh check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(LOCKED) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps $(LOCKED)
	cargo deny --workspace --log-level error check bans licenses sources
	@echo "advisories are not part of this: \`make audit\` asks the advisory database, which is on the network"

.PHONY: audit
audit: ## known vulnerabilities in our dependencies (fetches the advisory database)
	@scripts/setup.sh check
	cargo deny --workspace --log-level error check advisories

.PHONY: test
test: ## everything: unit, conformance and whole-cluster tests (nextest), and doc tests
	@scripts/setup.sh test
	cargo test --workspace --doc --quiet $(LOCKED)
	cargo build --workspace --all-targets $(LOCKED)
	FLUX_TEST_BINARIES=built cargo nextest run --workspace $(LOCKED)

# Clouds that the autoscaler has, in it and by themselves.
CLOUDS = -p flux-autoscaler -p flux-provider-aws --features flux-autoscaler/aws,flux-autoscaler/gcp,flux-provider-aws/sdk

.PHONY: test-clouds
test-clouds: ## the providers aws and gcp by the clouds' own clients, aws in the autoscaler too, against moto and stand-ins (builds EC2's client: 7 GiB, minutes)
	@scripts/setup.sh all
	@scripts/setup.sh clouds
	cargo clippy $(LOCKED) -p flux-provider-gcp --features sdk --all-targets -- -D warnings
	cargo nextest run $(LOCKED) -p flux-provider-gcp --features sdk
	cargo build $(LOCKED) -p flux-cli -p flux-agent --bins
	cargo clippy $(LOCKED) $(CLOUDS) --lib --tests -- -D warnings
	FLUX_TEST_BINARIES=built cargo nextest run $(LOCKED) $(CLOUDS) -E 'package(flux-provider-aws) | test(/^moto::/)'

DEB_PROFILE ?= release
AUTOSCALER_FEATURES ?= flux-autoscaler/aws,flux-autoscaler/gcp

.PHONY: deb
deb: build ## Debian packages of gateway, agent, autoscaler (with every cloud's SDK) and command line, into target/debian
	@scripts/setup.sh deb
	cargo build --release $(LOCKED) -p flux-autoscaler --features $(AUTOSCALER_FEATURES) --bins
	@scripts/deb.sh $(or $(CARGO_TARGET_DIR),target)/debian

.PHONY: deb-check
deb-check: ## installs, upgrades, removes and purges them in a Debian of their own (root; DEB_PROFILE=dev takes a debug build, AUTOSCALER_FEATURES= one without SDKs)
	@scripts/setup.sh deb
	cargo build --profile $(DEB_PROFILE) $(LOCKED) -p flux-cli -p flux-gateway -p flux-agent -p flux-autoscaler \
	    $(if $(AUTOSCALER_FEATURES),--features $(AUTOSCALER_FEATURES)) --bins
	@scripts/deb-check.sh $(DEB_PROFILE)

MICROVM_IMAGE ?= $(CURDIR)/.tools/microvm
FIRECRACKER ?= $(or $(shell command -v firecracker),/usr/local/bin/firecracker)
# What the tests of a real Firecracker are told.
MICROVM_ENV = FLUX_FIRECRACKER=$(FIRECRACKER) FLUX_MICROVM_IMAGE=$(MICROVM_IMAGE) FLUX_FIRECRACKER_KERNEL=$(MICROVM_IMAGE)/vmlinux \
    $(if $(JAILER),FLUX_JAILER=$(JAILER))

.PHONY: microvm-image
microvm-image: ## kernel, initramfs and root file system of microVMs, into MICROVM_IMAGE
	@scripts/setup.sh test
	cargo run --quiet $(LOCKED) -p flux-cli -- microvm build --out $(MICROVM_IMAGE)

.PHONY: test-microvm
test-microvm: microvm-image ## the driver on a real firecracker (FIRECRACKER= JAILER=; needs a KVM that boots Linux)
	$(MICROVM_ENV) cargo nextest run $(LOCKED) -p flux-firecracker --run-ignored only

.PHONY: bench-microvm
bench-microvm: microvm-image ## starts of a microVM on a real firecracker: cold, restored, warm
	$(MICROVM_ENV) cargo run --release --quiet $(LOCKED) -p flux-firecracker --example bench_microvm

.PHONY: bench-queues
bench-queues: build ## the same load on NATS and on RabbitMQ, side by side
	@scripts/setup.sh test
	FLUX_BIN_DIR=$(CURDIR)/target/release cargo run --release --quiet $(LOCKED) -p flux-testkit --example queue_bench

.PHONY: api-check
api-check: build ## a running API against its own OpenAPI document, by schemathesis (EXAMPLES=20)
	@scripts/api-check.sh

.PHONY: fuzz
fuzz: ## every parser of outside bytes, 20 s each (FUZZ_SECONDS=); TARGETS="jwt sse" for some
	@scripts/fuzz.sh $(TARGETS)

.PHONY: run
run: setup build ## start Flux with an example deployed, on 127.0.0.1:7227, until Ctrl-C
	@scripts/run.sh

.PHONY: echo-function
echo-function: ## the static native functions that the benchmarks deploy
	@scripts/echo-function.sh

.PHONY: bench
bench: setup-bench build echo-function ## Flux beside its yardsticks, in one run; writes docs/benchmarks.md
	@scripts/bench.sh --out docs/benchmarks.md

.PHONY: setup-peers
setup-peers: ## install what only bench-peers needs (busybox, Redis, Celery, functions-framework, BullMQ)
	@scripts/setup.sh peers

.PHONY: bench-peers
bench-peers: setup-peers build echo-function ## the same, also beside busybox httpd, functions-framework, Celery and BullMQ
	@scripts/bench.sh --peers --out docs/benchmarks.md

.PHONY: bench-containers
bench-containers: build ## warm and cold containers beside warm processes and `docker run`, with a dockerd started for it
	@scripts/setup.sh test
	cargo run --release --quiet $(LOCKED) -p flux-testkit --example container_bench

.PHONY: load
load: setup-bench build echo-function ## k6 load tests with thresholds, against a Flux started for them
	@scripts/load.sh

.PHONY: overload
overload: setup-bench build echo-function ## five times what a Flux can take, for a minute (see docs/overload.md)
	@scripts/overload.sh

TOPOLOGY ?= embedded
MINUTES ?= 5

.PHONY: setup-chaos
setup-chaos: ## install what only chaos needs (libfaketime)
	@scripts/setup.sh chaos

.PHONY: chaos
chaos: setup-chaos build ## kill, stop, starve a Flux under load and prove what held; TOPOLOGY=embedded|cluster|redis|postgres-rabbitmq SEED= MINUTES=
	cargo build --release $(LOCKED) -p flux-chaos --bins
	$(or $(CARGO_TARGET_DIR),target)/release/flux-chaos run --topology $(TOPOLOGY) $(if $(SEED),--seed $(SEED)) \
	    --minutes $(MINUTES) --history chaos-history.jsonl --report docs/reliability.md

.PHONY: scale
scale: setup build ## 10,000 functions, 100 agents, a million queued; writes docs/scale.md and docs/scale.svg
	cargo build --release --quiet $(LOCKED) -p flux-scale
	$$(source scripts/lib.sh; target_dir)/release/flux-scale run

.PHONY: scale-out
scale-out: setup build ## none, 1, 10 and no nodes again under load, with the provider `local`; writes docs/scale-out.md
	cargo build --release --quiet $(LOCKED) -p flux-scale
	$$(source scripts/lib.sh; target_dir)/release/flux-scale out --out docs

.PHONY: compose-check
compose-check: ## deploy/compose.yml: its form, its files, and every setting in it by the programs that read it
	@scripts/setup.sh compose
	cargo build --quiet $(LOCKED) -p flux-gateway -p flux-agent --bins
	@python3 scripts/compose-check.py $$(source scripts/lib.sh; target_dir)/debug

.PHONY: clean
clean: ## remove what was built and the data of `make run`; installed tools stay
	cargo clean
	rm -rf .flux loadtest/functions/echo/echo
