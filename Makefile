# Two commands are enough on a machine with Python ≥ 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= runs/demo
BIN := $(VENV)/bin

.PHONY: demo test docs install format

demo: $(VENV)/.installed  ## train, diagnose, prune and compare on digits
	$(BIN)/stagecost demo --output $(OUTPUT)

test: $(VENV)/.installed  ## style, types, import order, tests: all that CI checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests experiments examples fuzz
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

docs: $(VENV)/.installed  ## the documentation site: build/site/docs/index.html
	$(BIN)/sphinx-build -q -n -W --keep-going -c docs . build/site

install: $(VENV)/.installed

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format src tests experiments examples fuzz

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 …')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
