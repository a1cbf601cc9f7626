# The verbs of the project; `make` alone lists them. Everything is installed into .venv and .tools in this folder.
.DEFAULT_GOAL := help
SHELL := /bin/bash
UV_VERSION := 0.13.8
UV := .tools/bin/uv
BIN := .venv/bin
# Test processes; the machine's cores serve unless said otherwise.
JOBS ?= $(shell nproc)

.PHONY: help install demo test lint types tests bench-queue bench-exports bench-recognition bench-storage bench-opinions bench-snapshot format migration clean

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV): Makefile
	python3 -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.installed: pyproject.toml uv.lock $(UV)
	$(UV) sync --frozen --all-extras
	@touch $@

install: .venv/.installed ## Install everything, as pinned in uv.lock

demo: install ## Run the main job: IMAGES=/folder MODEL=decimer for your own images and DECIMER's weights
	@$(BIN)/python -m uworker.demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(MODEL),--model "$(MODEL)")

test: install lint types tests ## Run all checks and tests

lint: install ## Check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install ## Check types
	$(BIN)/mypy

tests: install ## Run the tests alone; ARGS="tests/test_jobs.py -k add" for some of them
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report= $(or $(ARGS),$(AGAIN) -m "not alone")
	$(if $(ARGS),,$(BIN)/pytest --cov --cov-append --cov-report= $(AGAIN) -m alone)
	$(if $(ARGS),,$(BIN)/coverage report --skip-covered)
	$(if $(ARGS),,$(BIN)/coverage report --fail-under=$(GATE) --include='job_api/queue*.py,job_api/claiming.py,job_api/steering.py,job_api/counters.py,job_api/auth.py,job_api/client.py,job_api/sending.py')

# In the run of them all, what fails is tried once more, as long as it is five tests at most: a machine that stalls for
# seconds is no fault. Its first failure is printed in full, since what is random may be one.
AGAIN := --reruns 1 --max-suite-reruns 5 --rerun-show-tracebacks

# What of the state machine, the logins and the client must be covered, in per cent, branches counted.
GATE := 95

bench-queue: install ## Measure the service under load, a quarter of an hour; ARGS="--quick" for a look in one minute
	@$(BIN)/python -m benchmarks $(ARGS)

bench-exports: install ## Measure the formats of the export, rate and memory at a million rows, 3 minutes; ARGS="--rows 10000" for a look
	@$(BIN)/python -m benchmarks.formats $(ARGS)

bench-recognition: install ## Measure the worker against DECIMER alone, on a replica of its model, 8 minutes; ARGS as above
	@$(BIN)/python -m benchmarks.recognition $(ARGS)

bench-storage: install ## Measure listing and reading of object storage on an emulator, 5 minutes; ARGS as above
	@$(BIN)/python -m benchmarks.storage $(ARGS)

bench-opinions: install ## Count what osra reads right: ARGS="--images DIR --reference FILE", a second or two an image
	@$(BIN)/python -m benchmarks.opinions $(ARGS)

bench-snapshot: install ## Measure building, loading and starting the worker's image in Docker engines of its own, 10 minutes
	@$(BIN)/python -m benchmarks.snapshot $(ARGS)

format: install ## Bring the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

migration: install ## Draft a migration: MESSAGE="what it does", JOB_API_DATABASE_URL=a database at the newest revision
	$(BIN)/alembic revision --autogenerate -m "$(MESSAGE)"

clean: ## Remove what was installed and built here
	rm -rf .venv .tools tests/emulators/node_modules .mypy_cache .ruff_cache .pytest_cache .coverage* demo-output
