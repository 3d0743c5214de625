# `make` alone lists what can be made. PYTHON=python3.12 takes another Python, VERSIONS=lowest or pre-releases other versions than
# those of constraints.txt, and ARGS="..." goes on to the command behind a target.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8
.PHONY: help env train test quick tutorials faults benchmarks docs build constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

env: ## .venv with the package and its tools; instant if nothing changed. UV_TORCH_BACKEND=cpu takes PyTorch without CUDA
	@$(PYTHON) tests/environment.py $(VERSIONS)

train: env ## train the default recipe on CIFAR-10; ARGS="--recipe airbench94_long" takes another
	@$(BIN)/cifar-fastai train $(ARGS)

test: env ## every check, on all processors: all tests, all notebooks, what is made of them; ARGS="-k transfer" takes some
	@$(PYTEST) $(ARGS)

quick: env ## the quick tests, and the notebooks that you changed: before a commit
	@$(PYTEST) -m "not slow" $(ARGS)

tutorials: env ## the tutorials at their full size; ARGS="-k transfer" takes one
	@$(PYTEST) --whole tests/test_notebooks.py -k tutorials $(ARGS)

faults: env ## kill everything that writes, 200 times, and compare what is there in the end; ARGS="--disks 50" fills disks too
	@$(BIN)/python tests/faults.py $(ARGS)

benchmarks: env ## measure the recipes of the README's table again, on this idle machine; continues where it was stopped; ARGS="--seeds 10"
	@$(BIN)/python benchmarks/speedruns.py $(ARGS)

docs: env ## README.md, and the site in _site/html
	@$(BIN)/python docs/readme.py
	@$(BIN)/python docs/build_site.py $(ARGS)

build: env ## wheel and sdist, in dist/
	@$(BIN)/python -m build $(ARGS)

constraints: env ## constraints.txt with the newest versions of everything that is installed
	@UV_CUSTOM_COMPILE_COMMAND='make constraints' $(BIN)/uv pip compile --quiet --upgrade --universal --no-python-downloads \
	    --python-version $$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml) \
	    --extra course --extra dev --extra interpret --extra heic --extra weights --extra parquet --extra track --extra tune --extra export --extra app --strip-extras --no-annotate --output-file constraints.txt pyproject.toml

clean: ## remove what make made, .venv too; runs/ stays
	@rm -rf .venv build dist *.egg-info _proc _site .pytest_cache
