# Two commands on a fresh machine: `make demo` writes a story, `make test` runs all that CI checks.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint format clean

demo: $(VENV)/.installed
	@$(BIN)/clearhead generate --demo

test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stamp is older than pyproject.toml when the dependencies may have changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || echo "1/2  making $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "2/2  installing Clearhead and what it needs (PyTorch is the large part; a minute or two, once) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@
	@echo

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Adding what the tests need (transformers, pytest, ruff, mypy) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
