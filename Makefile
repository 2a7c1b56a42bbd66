# Each target sets up .venv by itself, once; it is set up again when the two files below change.
PYTHON ?= python3
BIN := .venv/bin
PINS := pyproject.toml constraints.txt
INSTALL = $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check \
  -c constraints.txt -e
# What pip would do on one core. Files for other versions of Python do not compile, nor are imported.
COMPILE = ($(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests/' .venv/lib || true)

help:
	@echo "make quickstart   edit the demo clip; results in runs/quickstart/"
	@echo "make test         ruff, import-linter and pytest, notebooks included"
	@echo "make test-sdxl    the tests of the pipeline on Stable Diffusion XL"
	@echo "make lint         ruff and import-linter only"
	@echo "make gpu          check and time this machine's graphics card; report in runs/gpu/"
	@echo "make lab          JupyterLab on notebooks/"
	@echo "make figures      every figure and table, and a gallery; in figures/; PRESET=sprites: hours"
	@echo "make miniature    train the miniature again (hours; resumes where it stopped)"
	@echo "make miniature-flow  train its video transformer again (hours on a CPU; resumes)"
	@echo "make constraints  pin what a fresh environment resolves to"
	@echo "make clean        remove .venv and caches; runs/ and figures/ stay"

quickstart: .venv/core.stamp
	@$(BIN)/vala quickstart -o runs/quickstart

# A worker per core; the tests of a file, which share models, go to one worker. One of the tests is
# import-linter.
test: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The tests of the pipeline once more, on Stable Diffusion XL: about 4 minutes.
test-sdxl: .venv/test.stamp
	$(BIN)/python -m pytest tests/editing --family sdxl -n logical --maxprocesses 4 --dist loadfile

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

# ARGS, for example: make gpu ARGS="--budget 120 --only correctness"
gpu: .venv/core.stamp
	@$(BIN)/python -m vala_research.evaluation.gpu -o runs/gpu $(ARGS)

# The file browser shows runs/ and figures/ too. Root, as in a container, has to say that it is meant.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
lab: .venv/notebooks.stamp
	$(BIN)/jupyter lab $(ROOT) --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb

PRESET ?= smoke
figures: .venv/notebooks.stamp
	$(BIN)/vala figures --preset $(PRESET) -o figures

miniature: .venv/core.stamp
	$(BIN)/python -m vala_research.miniature

miniature-flow: .venv/core.stamp
	$(BIN)/python -m vala_research.miniature.flow

constraints: pyproject.toml
	rm -rf .venv/fresh && $(PYTHON) -m venv .venv/fresh
	.venv/fresh/bin/python -m pip install -qq 'torch==2.13.0' -e '.[test,notebooks,batch]'
	(sed -n '/^#/p' constraints.txt; .venv/fresh/bin/python -m pip freeze --exclude-editable \
	  | sed -E 's/\+[a-z0-9.]+$$//; s/$$/ ; python_version >= "3.11"/') > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt && rm -rf .venv/fresh

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "vala_research needs Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo missing):" \
	       "install a newer one, or name it with make PYTHON=/path/to/python3." >&2; exit 1; }
	@echo "Setting up .venv (once; a few minutes)."
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/core.stamp: $(PINS) | .venv/bin/python
	@$(INSTALL) . && $(COMPILE) && touch $@

.venv/test.stamp .venv/notebooks.stamp: .venv/%.stamp: $(PINS) | .venv/bin/python
	@$(INSTALL) '.[$*]' && $(COMPILE) && touch $@ .venv/core.stamp

.PHONY: help quickstart test test-sdxl lint gpu lab figures miniature miniature-flow constraints clean
