# `make` alone lists what can be made. PYTHON=python3.12 takes another Python, ARGS="..." goes on to the command behind a target.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: help env train test docs build constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

env: ## .venv with the package and all its tools; a moment when nothing changed
	@$(PYTHON) tests/environment.py

train: env ## train a CNN on the best CIFAR-10 data to be had; ARGS="--recipe speedrun" takes another recipe
	@$(BIN)/cifar-fastai train $(ARGS)

test: env ## every check: notebooks, README, tests; ARGS="notebooks pytest" takes some
	@$(BIN)/python tests/checks.py $(ARGS)

docs: env ## README.md, and the site in _site/html
	@$(BIN)/python docs/readme.py
	@$(BIN)/python docs/build_site.py $(ARGS)

build: env ## wheel and sdist, in dist/
	@$(BIN)/python -m build $(ARGS)

constraints: env ## constraints.txt with the newest versions of everything that is installed
	@UV_CUSTOM_COMPILE_COMMAND='make constraints' $(BIN)/uv pip compile --quiet --upgrade --universal --no-python-downloads \
	    --python-version $$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml) \
	    --extra course --extra dev --extra interpret --strip-extras --no-annotate --output-file constraints.txt pyproject.toml

clean: ## remove what make made, .venv too; runs/ stays
	@rm -rf .venv build dist *.egg-info _proc _site .pytest_cache
