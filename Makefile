# The few commands a person needs; `make help` lists them. What they do is in scripts/ and tests/.

CARGO ?= cargo
GUEST ?= linux
HOSTS ?= 1
SECONDS ?= 60
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release

.DEFAULT_GOAL := help
.PHONY: help demo test bench microbench sim fuzz lint setup release

help: ## this list
	@echo "tern, a small KVM hypervisor whose guests migrate"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' Makefile
	@echo "  make demo GUEST=pulse     the same with the bare guest: no kernel to build, over in seconds"
	@echo "  make demo HOSTS=2         the same between two network namespaces, as between two hosts"
	@echo "  make sim SEED=0x1f        one simulated world again; SEEDS=1000000 ends after so many"
	@echo "  make fuzz TARGET=qmp      one of them for longer: SECONDS=600; scripts/fuzz list has the names"

demo: release ## boot a guest, move it while it runs, and show what happened
	@if [ "$(GUEST)" = linux ]; then scripts/setup network && scripts/image linux release; fi
	@if [ "$(HOSTS)" = 2 ]; then scripts/setup network; fi
	@$(RELEASE)/demo $(GUEST) $(HOSTS)

test: ## build what is missing, and run all tests
	@scripts/test

bench: release ## measure tern, and QEMU on the same guest
	@scripts/bench-setup
	@$(RELEASE)/bench

microbench: ## the inner loops alone (zero scan, deltas, compression), and what bounds each
	@scripts/setup build
	@$(CARGO) bench --quiet --locked -p tern-migration --features bench --bench inner_loops

sim: ## simulated migrations with faults of all kinds, until one breaks a promise
	@scripts/setup build
	@CARGO_PROFILE_RELEASE_PANIC=unwind $(CARGO) run --release --locked --quiet -p tern-migration --features sim \
		--example simulate -- $(or $(SEED),$(SEEDS)) $(SERIES)

fuzz: ## hostile input to every parser, coverage-guided, SECONDS=60 each
	@scripts/setup build
	@scripts/fuzz run $(SECONDS) $(TARGET)

lint: ## formatting, clippy, licenses
	@scripts/lint

setup: ## install what this system lacks
	@scripts/setup

release:
	@scripts/setup build
	@$(CARGO) build --release --locked -p tern -p tern-tests --bins
