# Every target makes .venv and installs what it needs, from nothing. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test test-all test-keras bench lint types docs wheel sdist test-oldest kernels mutants gpu gpu-smoke gpu-sanitize gpu-report format clean
.DEFAULT_GOAL := help

help:            ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## *(.*)/make \1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "%-14s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp an extra, or extras with commas between: what a target does not need is not installed for it.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: $(VENV)/.train  ## train a convolutional network on handwritten digits; draws runs/digits-three-layer/curves.png
	$(BIN)/cnnlayers train --data digits --overwrite

# nvrtc: NVIDIA's compiler as wheels, so that the CUDA kernels are compiled where no CUDA is installed (Linux alone).
TESTED := $(VENV)/.train,cpu,test,nvrtc
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
test: $(TESTED)  ## run every test that this machine can run, with a sample of the cases whose kernels must be compiled
	$(PYTEST) --sample

test-all: $(TESTED)  ## run every case of every test that this machine can run
	$(PYTEST) $(PYTEST_ARGUMENTS)

# Where Keras is installed, make test-all runs Keras's own tests by this one.
KERAS_SUITE := tests/test_keras.py::test_kerass_own_tests_pass_without_jax
test-keras: $(TESTED) $(VENV)/.keras  ## run Keras's own tests of the layers that cnnlayers.keras replaces, without JAX, and ours
	$(BIN)/python -m tests.keras_suite --numprocesses auto --maxprocesses 4 --dist worksteal
	$(PYTEST) tests/test_keras.py tests/test_readme.py --deselect $(KERAS_SUITE) $(PYTEST_ARGUMENTS)

# The PyTorch that the targets are for; one that is there already will do.
PYTORCH := $(BIN)/python -c 'import torch' 2> /dev/null || $(BIN)/python -m pip install --quiet torch==2.13.0
bench: $(VENV)/.train $(VENV)/.cpu  ## this machine beside PyTorch, as a table, JSON and pictures in bench/results
	@$(PYTORCH)
	$(BIN)/cnnlayers bench --device cpu

docs: $(VENV)/.train,cpu,docs  ## build the site in docs/_build/html: run its pages, check its links; warnings are errors
	@$(PYTORCH)
	$(BIN)/python -m sphinx --jobs 2 --fresh-env --write-all --quiet --nitpicky --fail-on-warning --keep-going docs docs/_build/html
	$(BIN)/python tests/site_check.py docs/_build/html

lint: $(VENV)/.dev  ## ruff: style, imports, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# backends/, kernels/ and bench/ live beside cnnlayers/ and inside it once installed: mypy sees them there by links.
types: $(VENV)/.dev  ## mypy --strict over the package
	@rm -rf .typecheck && mkdir -p .typecheck/cnnlayers
	@for f in cnnlayers/*; do ln -s ../../$$f .typecheck/cnnlayers/; done
	@for d in backends kernels bench; do ln -s ../../$$d .typecheck/cnnlayers/$$d; done
	cd .typecheck && ../$(BIN)/mypy -p cnnlayers --config-file ../pyproject.toml --cache-dir ../.mypy_cache

wheel: $(VENV)/.dev  ## build the wheel, install it elsewhere, import and use it from there
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python tests/wheel_check.py dist/*.whl

sdist: $(VENV)/.dev  ## build the source distribution
	$(BIN)/python -m build --sdist --outdir dist . > /dev/null

# The lowest versions that pyproject.toml allows, in an environment of their own; they warn of each other.
test-oldest:     ## run the tests with the oldest supported versions of everything
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt --editable '.[train,cpu,test]'
	.venv-oldest/bin/python -m pytest -W default --sample --numprocesses auto --maxprocesses 4 --dist worksteal

kernels: $(VENV)/.test $(VENV)/.nvrtc  ## print the tables of the CUDA kernels: registers, spills, bytes moved; and of their launches: predicted speed
	@$(BIN)/python -m tests.kernel_table

mutants: $(VENV)/.test  ## weaken each barrier, mask, bound and tie of the CUDA kernels in turn: the tests must notice each
	@$(BIN)/python -m tests.mutants

# The python3 that is there, without network or pip: NumPy, CuPy, pytest and hypothesis must be installed. No .venv is
# made and nothing is installed; in .gpu links stand as the package would.
.PHONY: gpu-links
gpu-links:
	@rm -rf .gpu && mkdir -p .gpu/cnnlayers
	@for f in *; do [ $$f = cnnlayers ] || ln -s ../$$f .gpu/; done
	@for f in cnnlayers/*; do ln -s ../../$$f .gpu/cnnlayers/; done
	@for d in backends kernels bench; do ln -s ../../$$d .gpu/cnnlayers/$$d; done

OUT    ?= gpu-report
ON_GPU := cd .gpu && $(PYTHON) -c 'from cnnlayers import backends; raise SystemExit(backends.available()["cupy"])' && \
	CALLED_FROM=$(CURDIR) $(PYTHON) -m tests.gpu_stages --out $(OUT)
gpu-smoke: gpu-links     ## on an NVIDIA GPU, offline, in 90 seconds: CuPy as it is used, every kernel once
	$(ON_GPU) smoke

gpu: gpu-links           ## on an NVIDIA GPU, offline, in five minutes: every test on CuPy itself
	$(ON_GPU) tests

gpu-sanitize: gpu-links  ## on an NVIDIA GPU: compute-sanitizer's memcheck and racecheck over a call of each op
	$(ON_GPU) sanitize

gpu-report: gpu-links    ## on an NVIDIA GPU: all of this and the benchmark, most informative first, into OUT=gpu-report
	$(ON_GPU) report

format: $(VENV)/.dev  ## let ruff format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove what the targets made, but for runs/
	rm -rf $(VENV) .venv-oldest .typecheck .gpu build dist docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
