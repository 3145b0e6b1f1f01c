# One verb a task; `make` lists them.
.DEFAULT_GOAL := help
.PHONY: help serve test lint types format check bench-gateway bench-tokens bench-engine bench-launch bench-quotas gpu prove-admission prove-kernels prove-quotas prove-restart prove-resilience prove-soak kernels train-demo test-compose clean
RUN := .venv/bin/python -m

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: ## serve on 127.0.0.1:8080: what penstock.yaml says, or the demo model
	@deploy/install engine
	@exec .venv/bin/penstock serve

test: ## everything that has to hold: format, lint, types, tests
	@deploy/install dev
	@command -v redis-server >/dev/null || deploy/install --debian redis-server || true # what needs it is skipped without
	@command -v g++ >/dev/null || deploy/install --debian g++
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) pytest

lint: ## ruff alone
	@deploy/install dev
	$(RUN) ruff check .

types: ## mypy alone
	@deploy/install dev
	$(RUN) mypy

format: ## write the code as it is written here
	@deploy/install dev
	$(RUN) ruff check --fix-only -q .
	$(RUN) ruff format .

check: lint types ## what can be said without running anything
	$(RUN) ruff format --check .

bench-gateway: ## the gateway's speed beside nginx and LiteLLM; SAVE=1 keeps the figures
	@deploy/install dev
	@command -v gcc >/dev/null || deploy/install --debian gcc libc6-dev
	@PATH=$$PATH:/usr/sbin command -v nginx >/dev/null || deploy/install --debian nginx-light || true # without it, then
	$(RUN) bench.gateway $(if $(SAVE),--save)

bench-tokens: ## what counting a prompt costs, and what the event loop feels of it
	@deploy/install dev
	$(RUN) bench.tokens

bench-engine: ## the engine's speed beside transformers
	@deploy/install dev
	$(RUN) engine bench

bench-launch: ## what launching a kernel costs on the Python side
	@deploy/install dev
	$(RUN) bench.launch

bench-quotas: ## what limits cost a request, and what callers wait while Redis fails
	@deploy/install dev
	$(RUN) bench.stages
	$(RUN) bench.redis_faults

prove-admission: ## five times the load and a noisy neighbour over sockets, each beside a control
	@deploy/install dev
	$(RUN) pytest -s -m "slow or not slow" tests/gateway/test_admission_real.py

prove-kernels: ## every kernel made wrong in every way that a rule knows, and found out by its own test (an hour)
	@deploy/install dev
	$(RUN) pytest -s -m "slow or not slow" tests/kernels/mutation

prove-quotas: ## quotas in full: 100,000 simulated worlds, minutes of 200 callers, 200 killed gateways, a failing Redis
	@deploy/install dev
	@command -v redis-server >/dev/null || deploy/install --debian redis-server
	$(RUN) tests.rig.quota_world --seeds 100000
	REPLAYED_SEEDS=1000 $(RUN) pytest tests/cache/test_simulation.py
	$(RUN) pytest -s -m 'slow or not slow' tests/quotas

prove-resilience: ## upstreams that fail and are slow; minutes of outage over sockets
	@deploy/install dev
	$(RUN) pytest -s -m "slow or not slow" tests/resilience

prove-restart: ## 10,000 requests through eight restarts of a proxy, none of which fails
	@deploy/install dev
	$(RUN) pytest -s -m 'slow or not slow' tests/process/test_restart.py

gpu: ## everything that a GPU is to show, in nine minutes; needs the engine's packages and pytest alone
	$(or $(wildcard .venv/bin/python),python3) -m bench.gpu $(if $(REHEARSE),--rehearse)

kernels: ## compile every CUDA kernel for every arch into the user's cache; needs no GPU
	@deploy/install dev
	$(RUN) engine kernels build

prove-soak: ## ten minutes of random faults at every place; SOAK_SECONDS=3600 for an hour, SOAK_STORE=redis, SOAK_SEED=2
	@deploy/install dev
	@test "$(SOAK_STORE)" != redis || command -v redis-server >/dev/null || deploy/install --debian redis-server
	$(RUN) pytest -s -m slow tests/soak

train-demo: ## train the demo model anew (hours on a CPU)
	@deploy/install engine
	$(RUN) engine.demo.train

test-compose: ## build the image, start it with docker compose and ask it
	@deploy/install dev
	$(RUN) pytest -m slow tests/compose

clean: ## remove what was built, the environment too
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
