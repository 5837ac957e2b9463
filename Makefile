# demo and test work on a fresh machine: they make .venv and install what they need. Nothing but Python >= 3.11 and make
# is assumed; a C++ compiler makes some operations faster and is not needed.
#
#   TORCH=...    what to install as torch, instead of the pinned version: a requirement or the path of a wheel; a CPU build
#                is enough
#   PYTHON=...   which Python makes .venv
#   ARGS=...     more arguments for the command behind demo, test, bench

PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c $(VENV)/constraints.txt
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/* native/kernels/*)

.PHONY: demo tour test test-slow sanitize lint check bench pictures source clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(VENV)/.train  ## train six networks on the images that ship with the package and print what each technique brought
	$(BIN)/leanconv demo $(ARGS)

tour: $(VENV)/.train  ## the source's figures, table and equations as one page, tour.html
	$(BIN)/leanconv tour $(ARGS)

test: $(VENV)/.dev  ## the tests, with native code and without
	$(BIN)/python -m pytest -n auto $(ARGS)
	LEANCONV_NATIVE=0 $(BIN)/python -m pytest -n auto tests/kernels tests/techniques/dropout $(ARGS)

test-slow: $(VENV)/.dev  ## the slow suite
	$(BIN)/python -m pytest -n auto --slow $(ARGS)

sanitize:  ## the native code under the address, undefined-behaviour and thread sanitizers (needs cmake)
	cmake -S . -B build/sanitize -DLEANCONV_SANITIZE=address,undefined
	cmake --build build/sanitize && build/sanitize/leanconv_cases
	cmake -S . -B build/sanitize-threads -DLEANCONV_SANITIZE=thread
	cmake --build build/sanitize-threads && build/sanitize-threads/leanconv_cases --threads

lint: $(VENV)/.dev  ## ruff, mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## lint and test

source: $(VENV)/.dev  ## every row of docs/source.md, its tests and their result
	$(BIN)/python tools/source.py -n auto $(ARGS)

pictures: $(VENV)/.dev  ## the README's pictures, by headless Chromium
	$(BIN)/python tools/pictures.py $(ARGS)

bench: $(VENV)/.dev  ## every benchmark; results are appended to benchmarks/results
	for script in benchmarks/*.py; do case $$script in */bench.py | */conten*.py | */conversion.py) ;; *) $(BIN)/python $$script $(ARGS) || exit 1;; esac; done

clean:  ## remove what was built and installed here
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("make: Python must be 3.11 or newer, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The user's own torch, where one is named, replaces the pin.
$(VENV)/constraints.txt: constraints.txt $(VENV)/bin/python
	$(if $(filter torch,$(TORCH)),cp constraints.txt $@,grep -v '^torch==' constraints.txt > $@)

$(VENV)/.train: $(VENV)/constraints.txt $(SOURCES)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	$(PIP) --editable '.[train,dev]'
	@touch $@
