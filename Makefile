# Everything runs from a virtual environment in .venv, made by the first target that needs one.
# All it takes is Python 3.11 or newer, make and git:
#
#   make demo                     compare the optimizers on real data
#   make test                     the fast tests
#   make test ARGS="-k msvag"     options go through ARGS, to demo, test and bench alike
#   make test PYTHON=python3.13 VENV=.venv-3.13   another Python, in an environment of its own

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
ARGS ?=

# A virtual environment breaks when it is moved or when its Python goes; then it is made anew.
SOUND := $(shell grep -qsF "$(realpath $(VENV))" $(VENV)/bin/activate && \
  $(RUN) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo yes)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

.PHONY: demo
demo: $(VENV)/has-demo  ## trains on real data with every optimizer; a table and a picture
	$(RUN) -m msvag_optax.compare $(ARGS)

.PHONY: test
test: $(VENV)/has-dev  ## the fast tests, with every example of the documentation
	$(RUN) -m pytest $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/has-dev  ## the tests that take long
	$(RUN) -m pytest -m slow --hypothesis-profile=slow $(ARGS) || [ $$? -eq 5 ]

.PHONY: test-all
test-all: test test-slow  ## both

.PHONY: lint
lint: $(VENV)/has-dev types  ## linter, formatter and type checker; changes nothing
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

.PHONY: types
types: $(VENV)/has-dev  ## the type checker alone
	$(RUN) -m pyrefly check --python-interpreter-path $(RUN)

.PHONY: format
format: $(VENV)/has-dev  ## mends what the linter and the formatter can mend
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

NOTEBOOKS ?= $(basename $(notdir $(wildcard notebooks/*.py)))
EXECUTED := $(NOTEBOOKS:%=build/notebooks/%.ipynb)
.PHONY: notebooks
notebooks: $(EXECUTED)  ## executes the notebooks that have changed, to build/notebooks; keeps nothing
	$(RUN) -m pytest --quiet tests/project/test_notebooks.py

.PHONY: notebooks-update
notebooks-update: $(EXECUTED)  ## the same, and keeps their outputs in notebooks; NOTEBOOKS=mixing_pieces for one
	$(RUN) -m docs.notebook_files $^

build/notebooks/%.ipynb: notebooks/%.py notebooks/helpers/%.py notebooks/helpers/__init__.py | $(VENV)/has-dev
	@echo "Executing $<"
	@mkdir -p $(@D)/running
	@$(RUN) -m jupytext --quiet --from py:percent --to ipynb --set-kernel python3 \
	  --output $(@D)/running/$(@F) $<
	@PYTHONWARNINGS=error::DeprecationWarning:__main__,error::FutureWarning:__main__ \
	  $(VENV)/bin/jupyter-execute --inplace --timeout=1800 $(@D)/running/$(@F)
	@mv $(@D)/running/$(@F) $@

.PHONY: docs
docs: $(VENV)/has-dev  ## the documentation, to docs/_build/html/index.html
	$(RUN) -m sphinx --fresh-env --fail-on-warning --keep-going --builder html docs docs/_build/html

.PHONY: bench
bench: $(VENV)/has-dev  ## the benchmarks
	$(RUN) -m benchmarks $(ARGS)

RESOLVE = $(RUN) -m uv pip compile pyproject.toml --python-version 3.11 \
  --no-header --no-annotate --quiet
.PHONY: constraints
constraints: $(VENV)/has-dev  ## newest and lowest versions, resolved anew
	$(RUN) -m pip install --quiet uv
	$(RESOLVE) --all-extras --universal --upgrade --output-file constraints.txt
	$(RESOLVE) --extra test --resolution lowest-direct --output-file constraints-lowest.txt

.PHONY: clean
clean:  ## removes .venv, caches and everything built
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .ruff_cache build dist docs/_build docs/api docs/notebooks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra; installing `dev` installs `demo` as well.
$(VENV)/has-%: pyproject.toml constraints.txt $(if $(SOUND),,new-venv)
	@echo "Installing msvag_optax[$*] into $(VENV); this is done once."
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-compile --no-input \
	  --constraint constraints.txt --editable '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(VENV)/has-demo)

.PHONY: new-venv
new-venv:
	@command -v $(PYTHON) >/dev/null || { echo >&2 \
	  "msvag_optax needs Python 3.11 or newer, and there is no $(PYTHON) here."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo >&2 \
	  "msvag_optax needs Python 3.11 or newer, and $(PYTHON) is" \
	  "$$($(PYTHON) -V 2>&1): name another one, as in make PYTHON=python3.13."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo >&2 \
	  "$(PYTHON) cannot make virtual environments: its module venv is missing" \
	  "(apt install python3-venv on Debian and Ubuntu)."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
