# Perennial. `make help` lists the targets.
SHELL := /bin/bash
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help check test repro step-versions

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

check: ## lint, format, types, import rules, fast tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports
	$(PY) -m pytest -m "not slow"

test: ## everything, the system test included
	$(PY) -m pytest

repro: ## the line without Airflow, on the pinned rows (DVC)
	PATH="$(CURDIR)/.venv/bin:$$PATH" dvc pull
	PATH="$(CURDIR)/.venv/bin:$$PATH" dvc repro

step-versions: ## say that changed steps still do what they did
	$(PY) -m tests.pipelines.steps.versions
