# Every target builds the environment first when there is none, or when what it is built from changed.
PYTHON ?= python3.11
VENV ?= .venv
python := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help .venv demo test test-long gpu-check check docs docs-serve audit clean

help: ## show this list
	@sed -nE 's/^([a-z.-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.venv: $(VENV)/.complete ## the environment, at the versions of constraints.txt

$(VENV)/.complete: pyproject.toml constraints.txt docker/install.sh
	@command -v $(PYTHON) > /dev/null || { echo "error: there is no $(PYTHON) here: install it, or name" \
		"another Python from 3.11 to 3.13, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	docker/install.sh $(python) dependencies dev
	docker/install.sh $(python) project --editable
	touch $@

demo: .venv ## synthetic videos -> two trained runs -> runs/baseline/report.html, on a laptop
	$(python) -m jobs.prepare synthetic data/synthetic --videos 320 --classes 8 --seed 0 --labeled 4/class
	$(python) -m jobs.ablate baseline --config jobs/configs/demo.yaml --concurrent 1

# one process of pytest more than CI has cores, because tests also wait
test: .venv ## the tests of every change
	PYTHONDONTWRITEBYTECODE= $(python) -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

test-long: .venv ## the tests that take minutes
	$(python) -m pytest -m long

gpu-check: ## what only a GPU can show, in eight minutes, with the python3 in PATH: it needs neither .venv nor Ray
	python3 -m tests.gpu

check: .venv ## style, types and layers
	$(python) -m ruff check .
	$(python) -m ruff format --check --quiet .
	$(python) -m mypy
	$(VENV)/bin/lint-imports

docs: .venv ## the documentation as a site without a network: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet
	@echo "the site: build/site/index.html"

docs-serve: .venv ## the same at http://127.0.0.1:8000, made again whenever a page is saved
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs serve --dev-addr 127.0.0.1:8000

audit: .venv ## known flaws in what the images hold and in what developers have; an SBOM of the former; asks a web service
	$(PYTHON) -m venv build/audit/tools
	build/audit/tools/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	$(python) docker/list_packages.py serve mlflow > build/audit/image.txt
	$(python) docker/list_packages.py dev > build/audit/developers.txt
	build/audit/tools/bin/cyclonedx-py requirements build/audit/image.txt --pyproject pyproject.toml --output-reproducible \
		--output-file build/audit/image.cdx.json
	for list in image developers; do \
		echo "== $$list"; \
		build/audit/tools/bin/pip-audit --no-deps --disable-pip --requirement build/audit/$$list.txt || failed=1; \
	done; exit $${failed:-0}

clean: ## remove the environment and caches; data/ and runs/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build actnetformer.egg-info
	find pipeline jobs tests -name __pycache__ -type d -exec rm -rf {} +
