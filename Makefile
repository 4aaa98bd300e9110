# Every target makes its own virtual environment on first use; nothing else is needed than Python 3.11+ with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
# Half as many processes again as processors (tests/conftest.py). A file of tests stays in one, for what it starts is shared in it. Files
# are begun in their order: those that take long are not among the last, where the other processes would have nothing left to do.
TEST_FLAGS ?= -n auto --dist loadfile --no-loadscope-reorder
# Kinds of database that tests run on; the first is that of tests which make an installation of their own.
export TEST_DATABASES ?= sqlite,postgresql

.PHONY: demo test serve lint bench clean

demo: $(VENV)/.installed
	$(BIN)/licet demo

serve: $(VENV)/.installed
	$(BIN)/licet serve --init

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(TEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	$(BIN)/python bench/run.py

clean:
	rm -rf $(VENV) demo data build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Licet needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[all,lint,test]'
	@touch $@
