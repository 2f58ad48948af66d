# Commands of the project; `make help` lists them.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

# The environment: an active virtual environment; else .venv; else that of python3 if it has the
# package; else a new .venv. (-P: the package has to be installed, not just in this folder.)
installed = $(shell $(1) -P -c 'import pd_core' 2>/dev/null && echo yes)
ifneq ($(VIRTUAL_ENV),)
  ENV := $(VIRTUAL_ENV)
else ifneq ($(wildcard .venv),)
  ENV := $(CURDIR)/.venv
else ifneq ($(call installed,python3),yes)
  ENV := $(CURDIR)/.venv
endif

# An environment of another origin that has the package is used unchanged.
ifneq ($(ENV),)
  export PATH := $(ENV)/bin:$(PATH)
  STAMP := $(ENV)/.promptkd-installed
  ifeq ($(wildcard $(STAMP)),)
    ifeq ($(call installed,$(ENV)/bin/python),yes)
      STAMP :=
    endif
  endif
endif

# No telemetry of the tools. (MLflow accepts `true`, not 1.)
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help install repository quickstart ablations protocols test test-slow test-ci test-transformers test-client fuzz bench load rehearsal faults mutation docs check format clean audit audit-tools licences sbom

help: ## List the commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Three data sets at a time, so that two cores stay busy to the end.
JOBS ?= 3

quickstart: install ## Install, run the embedded benchmark, print the result (10 minutes on two cores).
	@promptkd benchmark --jobs $(JOBS)
	@promptkd show

# Variants share their bases, which run first; -s runs a stage without its upstream stages.
ablations: install ## Run the paper's ablations, print the tables (hours, can be resumed).
	@cd ablations && dvc stage list --name-only | grep '^base@' \
		| xargs -P $(JOBS) -n 1 promptkd repro 2>&1 | cat
	@cd ablations && dvc stage list --name-only | grep '^variant@' \
		| xargs -P $(JOBS) -n 1 promptkd repro -s 2>&1 | cat
	@cd ablations && promptkd repro
	@promptkd ablation show

# All teachers, then all students, then all evaluations; the stages of a group are independent.
protocols: install ## Run the four protocols over three seeds, print the tables (hours, can be resumed).
	@cd protocols && promptkd repro code
	@cd protocols && for kind in teacher student '(novel|dataset|generalisation|classes)'; do \
		dvc stage list --name-only | grep -E "$$kind@" \
			| xargs -P $(JOBS) -n 4 promptkd repro -s 2>&1 | cat; \
	done
	@cd protocols && promptkd repro
	@promptkd protocols show

test: install ## Install, run the fast tests (no network, no GPU).
	@python3 -m pytest -n 2 --dist loadfile

test-slow: install ## Run the slow tests (more than an hour).
	@python3 -m pytest -m slow

test-transformers: install ## Install the extra transformers, which makes every start slower, and run its tests.
	@python3 -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[transformers]'
	@python3 -m pytest -q tests/models/test_multilingual.py

# The generator needs an older typer than ours, so it has an environment of its own.
GENERATOR := build/generator

test-client: install ## Install a generator of HTTP clients apart, test the client that it makes of the service.
	@test -x $(GENERATOR)/bin/openapi-python-client || { python3 -m venv $(GENERATOR) \
		&& $(GENERATOR)/bin/python -m pip install -qq --disable-pip-version-check openapi-python-client==0.29.1; }
	@PATH="$$PATH:$(CURDIR)/$(GENERATOR)/bin" python3 -m pytest -m "" tests/mlops/test_service_tools.py -k generated

fuzz: install ## Send 5,000 requests of schemathesis to the service (10 minutes).
	@python3 -m pytest -m "" tests/mlops/test_service_tools.py -k 5000

test-ci: install ## Run the slow tests that CI runs.
	@python3 -m pytest -m ci

# ONLY=distillation,startup measures these parts; the rows of the others are kept.
bench: install ## Measure the cost of each step, write reports/bench (35 minutes on two idle cores).
	@python3 -m benchmarks --only "$(ONLY)"

load: install ## Measure the service under load, write reports/serving (9 minutes on two idle cores).
	@python3 -m benchmarks.load

# SHARE=0.02 writes a fiftieth of the images, STEPS=40 measures so many steps of an epoch.
rehearsal: install ## Rehearse the paper's profile without its data, print what it will take (12 minutes on two cores).
	@python3 -m benchmarks.rehearsal $(if $(SHARE),--share $(SHARE)) $(if $(STEPS),--steps $(STEPS))

faults: install ## Kill and resume runs at 60 random times (an hour, can be resumed).
	@python3 tests/faults/faults.py

audit: audit-tools ## Check the pinned versions for known vulnerabilities (needs the network).
	@pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt 2> >(grep -v WARNING >&2) \
		|| { echo "audit failed: a pin has a known vulnerability, or the service does not know or answer" >&2; exit 1; }

# The text before the table is written by hand.
licences: audit-tools ## Write the licences of the dependencies into THIRD_PARTY.md.
	@set -e; mkdir -p build; names=$$(python3 tests/support/supply_chain.py); \
		{ sed '/^| Name /,$$d' THIRD_PARTY.md; pip-licenses -f markdown -s -nv -p $$names; } > build/THIRD_PARTY.md; \
		mv build/THIRD_PARTY.md THIRD_PARTY.md

sbom: audit-tools ## Write a bill of materials to build/sbom.json (CycloneDX).
	@mkdir -p build
	@cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate -o build/sbom.json
	@echo "wrote build/sbom.json"

audit-tools: install
	@python3 -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'

# One mutant at a time (JOBS sets more); can be resumed.
mutation: install ## Run coverage and mutation tests of the core (half an hour), see tests/mutation.md.
	@python3 tests/mutation.py

docs: install ## Build the documentation in build/site.
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true mkdocs build --quiet --strict

check: install ## Check lint, formatting, types, import rules, container files and documentation.
	@ruff check --quiet .
	@ruff format --check --quiet .
	@mypy --no-error-summary
	@report=$$(lint-imports) || { echo "$$report"; exit 1; }
	@hadolint Dockerfile
	@check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml
	@$(MAKE) docs
	@echo "checks passed"

format: install ## Format the code.
	@ruff format --quiet .
	@ruff check --quiet --fix .

clean: ## Remove the tools' caches (data, results and the environment stay).
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find pd_core flows benchmarks recipes tests tools -name __pycache__ -prune -exec rm -rf {} +

install: repository $(STAMP) ## Create or update the environment.

# DVC and the origin of results need a git repository; a ZIP download has none.
repository:
	@git ls-files --error-unmatch dvc.yaml > /dev/null 2>&1 || { echo "error: '$(CURDIR)' is no git \
	repository, as a ZIP download is none; clone it by git, or run \`git init && git add --all && git \
	commit -m promptkd\` here" >&2; exit 2; }

ifneq ($(STAMP),)
$(STAMP): pyproject.toml constraints.txt | repository
	@test -x $(ENV)/bin/python || { echo "making $(ENV)"; python3 -m venv $(ENV); }
	@echo "installing into $(ENV) (takes a few minutes)"
	@python3 -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@promptkd offline-plots > /dev/null
	@touch $@
endif
