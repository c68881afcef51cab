# The commands of a stranger: `make demo` and `make test` do all the set-up that they need. `make help` lists the rest.
#
# Everything lives in .venv. torch comes from constraints.txt so that a machine without a GPU fetches no gigabytes of
# CUDA; on a machine with one, install with plain pip instead (README).

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test check format wheel clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.all  ## pictures from three prompts, an edit and a composition, into out/
	$(BIN)/python examples/demo.py

# Two at a time, and then alone those that measure time or want all cores; a failure of the first ends it. Of the second
# only the files with such tests are read. Hundreds of processes are started: compiled once, the package is theirs at once.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev  ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not alone'
	$(BIN)/python -m pytest -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests)

check: $(VENV)/.dev  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.dev  ## build dist/kleinbild-*.whl
	$(BIN)/python -m build --no-isolation --wheel

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Kleinbild needs Python 3.11 or newer; none was found. Set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.all: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.all
