# Two commands on a fresh machine: `make demo` writes a story, `make test` runs everything that CI checks.
#
# PIP_OPTIONS are further options for pip. PyTorch's installation page gives those that select its build for the CPU.

PYTHON      ?= python3
PIP_OPTIONS ?=
VENV        := .venv
BIN         := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP         := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(PIP_OPTIONS)
PYTEST      := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test check fast lint format docs fuzz test-docs test-machines clean

demo: $(VENV)/.installed
	@$(BIN)/clearhead generate --demo

test: lint
	$(PYTEST) -n 2 --cov --cov-report=term:skip-covered

# Before every commit: a minute at most, the types and the tests side by side.
check: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory --jobs 2 lint fast

fast: $(VENV)/.installed-test
	$(PYTEST) -n 2 -m "not slow" -x

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation as a site in build/site, in English and Chinese; a warning is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Damaged files for every reader and bodies for every route, FUZZ_INPUTS of each kind: nothing but success or a ClearheadError.
FUZZ_INPUTS ?= 10000
fuzz: $(VENV)/.installed-test
	HYPOTHESIS_PROFILE=random FUZZ_INPUTS=$(FUZZ_INPUTS) $(PYTEST) tests/fuzz

# Every command of the READMEs and docs with what it prints, those that take minutes too.
test-docs: $(VENV)/.installed-test
	DOCS=all $(PYTEST) tests/test_documentation.py

# The tests that a CPU, a locale or a file system could change, on as many kinds of machine as this one can imitate.
test-machines: $(VENV)/.installed-test
	$(BIN)/python tests/machines.py $(MACHINES)

# The stamp is older than pyproject.toml if the dependencies may have changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -e $(VENV)/pyvenv.cfg || echo "1/2  creating $(VENV) ..."
	@test -e $(VENV)/pyvenv.cfg || $(PYTHON) -m venv $(VENV)
	@echo "2/2  installing Clearhead and its dependencies (half a minute, once) ..."
	@$(PIP) --editable .
	@touch $@
	@echo

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Adding PyTorch and what the tests need (a minute or two, once) ..."
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
