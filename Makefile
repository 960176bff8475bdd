# Two commands from a bare clone: `make test` and `make demo`. Each sets up what it needs.

PYTHON ?= python3
UV := $(or $(shell command -v uv),.uv/bin/uv)
INSTALLED := .venv/.installed
unexport PYTHONDONTWRITEBYTECODE # without cached bytecode every worker process spends seconds on compiling torch

.PHONY: help setup test test-slow slurm-test demo lint wheel-test clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## install samnn, editable, with all it needs, into .venv (PYTHON=python3.12 chooses another)

test: setup ## run the tests, less those of minutes each
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not slow and not slurm" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## run the tests of minutes each
	.venv/bin/python -m pytest -m "slow and not slurm"

slurm-test: setup ## as root, with Debian's slurmctld slurmd slurm-client munge: experiments through a real SLURM
	.venv/bin/python -m pytest -m slurm tests/crossval

demo: setup ## run the whole chain on made-up patients: convert, train, predict, evaluate
	.venv/bin/samnn demo

lint: setup ## check style and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

wheel-test: setup ## build the wheel from the tracked files, install it alone, and try it in an empty folder
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && set -eux && \
	mkdir "$$scratch/source" "$$scratch/empty" && \
	git ls-files -z | tar -cf - --null -T - | tar -xf - -C "$$scratch/source" && \
	$(UV) build --quiet --wheel --python .venv/bin/python --out-dir "$$scratch" "$$scratch/source" && \
	$(UV) venv --quiet --python .venv/bin/python "$$scratch/venv" && \
	$(UV) pip install --quiet --python "$$scratch/venv/bin/python" "$$scratch"/*.whl && \
	cd "$$scratch/empty" && "$$scratch/venv/bin/python" -I "$$scratch/source/tests/wheel_smoke.py"

clean: ## remove everything that make made
	rm -rf .venv .uv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): setup.cfg pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv
	$(UV) pip install --python .venv/bin/python -e '.[dev]'
	touch $@

.uv/bin/uv:
	@echo "There is no uv on PATH: fetching it from PyPI into .uv"
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv
