# One command per need; `make help` lists them.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

# The environment: an active virtual environment; else .venv; else whatever python3 already has
# the package; else a new .venv. (-P: the package has to be installed, not just lie here.)
installed = $(shell $(1) -P -c 'import pd_core' 2>/dev/null && echo yes)
ifneq ($(VIRTUAL_ENV),)
  ENV := $(VIRTUAL_ENV)
else ifneq ($(wildcard .venv),)
  ENV := $(CURDIR)/.venv
else ifneq ($(call installed,python3),yes)
  ENV := $(CURDIR)/.venv
endif

# An environment that was not set up from here but has the package is used as it is.
ifneq ($(ENV),)
  export PATH := $(ENV)/bin:$(PATH)
  STAMP := $(ENV)/.promptkd-installed
  ifeq ($(wildcard $(STAMP)),)
    ifeq ($(call installed,$(ENV)/bin/python),yes)
      STAMP :=
    endif
  endif
endif

# Nothing is reported to the makers of the tools. (MLflow wants the word, not 1.)
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help install repository quickstart ablations protocols test test-slow test-ci bench load faults mutation docs check format clean audit audit-tools licences sbom

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Three data sets at a time, so that two cores stay busy to the end.
JOBS ?= 3

quickstart: install ## set up, run the whole embedded benchmark, show the result
	@promptkd benchmark --jobs $(JOBS)
	@promptkd show

# Variants share their bases, which come first; -s keeps them from waiting for each other's.
ablations: install ## run the paper's ablations (hours; goes on where it stopped), show the tables
	@cd ablations && dvc stage list --name-only | grep '^base@' \
		| xargs -P $(JOBS) -n 1 promptkd repro 2>&1 | cat
	@cd ablations && dvc stage list --name-only | grep '^variant@' \
		| xargs -P $(JOBS) -n 1 promptkd repro -s 2>&1 | cat
	@cd ablations && promptkd repro
	@promptkd ablation show

# All teachers, then all students, then all measurements: within each, nobody waits for another.
protocols: install ## run the four protocols over three seeds (hours; goes on where it stopped), show the tables
	@cd protocols && promptkd repro code
	@cd protocols && for kind in teacher student '(novel|dataset|generalisation|classes)'; do \
		dvc stage list --name-only | grep -E "$$kind@" \
			| xargs -P $(JOBS) -n 4 promptkd repro -s 2>&1 | cat; \
	done
	@cd protocols && promptkd repro
	@promptkd protocols show

test: install ## set up and run the tests (no network, no GPU)
	@python3 -m pytest -n 2 --dist loadfile

test-slow: install ## run the tests that take long (more than an hour)
	@python3 -m pytest -m slow

test-ci: install ## of these, run those that guard the main roads, as CI does
	@python3 -m pytest -m ci

# ONLY=distillation,startup measures these parts; the rows of the others stay.
bench: install ## measure every step against a plain path (35 minutes on two quiet cores), see reports/bench
	@python3 -m benchmarks --only "$(ONLY)"

load: install ## measure the service under load (nine minutes on two quiet cores), see reports/serving
	@python3 -m benchmarks.load

faults: install ## kill runs at 60 random times and start them again (an hour; goes on where it stopped)
	@python3 tests/faults/faults.py

audit: audit-tools ## look for known vulnerabilities in the pinned versions (asks PyPI's advisory service)
	@pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt 2> >(grep -v WARNING >&2) \
		|| { echo "audit failed: a pin has a known vulnerability, or the service does not know or answer" >&2; exit 1; }

# All up to its last heading is written by hand.
licences: audit-tools ## write the licences of the dependencies into THIRD_PARTY.md
	@set -e; mkdir -p build; names=$$(python3 tests/support/supply_chain.py); \
		{ sed '/^| Name /,$$d' THIRD_PARTY.md; pip-licenses -f markdown -s -nv -p $$names; } > build/THIRD_PARTY.md; \
		mv build/THIRD_PARTY.md THIRD_PARTY.md

sbom: audit-tools ## write what the environment is made of to build/sbom.json (CycloneDX, validated)
	@mkdir -p build
	@cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate -o build/sbom.json
	@echo "wrote build/sbom.json"

audit-tools: install
	@python3 -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'

# One mutant at a time unless the environment's JOBS says more; goes on where it stopped.
mutation: install ## coverage and mutation testing of the core (half an hour), see tests/mutation.md
	@python3 tests/mutation.py

docs: install ## build the documentation's site in build/site
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true mkdocs build --quiet --strict

check: install ## lint, formatting, types, import rules, container files, documentation
	@ruff check --quiet .
	@ruff format --check --quiet .
	@mypy --no-error-summary
	@report=$$(lint-imports) || { echo "$$report"; exit 1; }
	@hadolint Dockerfile
	@check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml
	@$(MAKE) docs
	@echo "checks passed"

format: install ## format the code
	@ruff format --quiet .
	@ruff check --quiet --fix .

clean: ## remove caches of the tools (data, results and the environment stay)
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find pd_core flows benchmarks recipes tests tools -name __pycache__ -prune -exec rm -rf {} +

install: repository $(STAMP) ## set up the environment, if it is not

# DVC and every result's origin need git, so a ZIP download will not do.
repository:
	@git ls-files --error-unmatch dvc.yaml > /dev/null 2>&1 || { echo "error: '$(CURDIR)' is no git \
	repository, as a ZIP download is none; clone it by git, or run \`git init && git add --all && git \
	commit -m promptkd\` here" >&2; exit 2; }

ifneq ($(STAMP),)
$(STAMP): pyproject.toml constraints.txt | repository
	@test -x $(ENV)/bin/python || { echo "making $(ENV)"; python3 -m venv $(ENV); }
	@echo "installing into $(ENV) (takes a few minutes)"
	@python3 -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
endif
