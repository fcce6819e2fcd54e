# Two commands for a fresh machine that has Python 3.11 or later: `make demo` and `make test`.  Each does all of its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install bench image-check clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 7 GB, most of it torch with CUDA; some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/onnx-audit --version
	touch $@

demo: install
	$(BIN)/onnx-audit demo --out demo

test: install
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m models.bench

image-check:
	scripts/image-check

clean:
	rm -rf $(VENV) demo build dist *.egg-info
