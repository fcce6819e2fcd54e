# Two commands for a fresh machine that has Python 3.11 or later: `make demo` and `make test`.  Each does all of its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install bench bench-operators bench-imports image-check clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 7 GB, most of it torch with CUDA; some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/onnx-audit --version
	touch $@

demo: install
	$(BIN)/onnx-audit demo --out demo

# A file of tests stays together: what is made for it once, servers and small trained networks, is.
test: install
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Purifiers side by side on the zoo; DATA holds cifar10.npz.  The better part of a day on two cores; goes on where it was killed.
DATA ?= data
bench: install
	$(BIN)/onnx-audit zoo unpack --data $(DATA) --zoo build/zoo
	$(BIN)/onnx-audit bench purify build/zoo/*-5pc-s1 --page docs/benchmarks.md

# The operator test models of onnx 1.22, ours beside stock onnx2torch.
bench-operators: install
	$(BIN)/python -m tests.bench.operators

# The 42 exports of torchvision (made first: 3.8 GB in build/exports), imported one after the other.
bench-imports: install
	$(BIN)/python -m tests.bench.exports build/exports
	$(BIN)/python -m tests.bench.importing build/exports --page

image-check:
	scripts/image-check

clean:
	rm -rf $(VENV) demo build dist *.egg-info
