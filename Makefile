# make demo    the whole chain on 4,000 real stars, results under demo/run/
# make stars   a minute: 100 stars from a list of ids to a table and star pages, demo/run/stars/
# make test    the tests
# make test-tap    the tests with a real TAP server, which they INSTALL on this machine (Debian
#              bookworm, as root, about 3 minutes; skipped elsewhere): for CI and containers
# make test-slurm  the tests with a real Slurm, which they INSTALL on this machine (Debian or Ubuntu,
#              as root; skipped elsewhere): for CI and containers
# make test-browser  the page of the results in a real headless browser, Chromium, which it INSTALLS
#              where it is missing (Debian, as root; skipped elsewhere): for CI and containers
# make lint    style checks
# make bench   speed and memory, per core (some need the model of make demo)
# make calibration   are the errors true? simulated and real stars, published extinction laws, a
#              discriminative peer; figures in benchmarks/out/ (needs the model of make demo; about
#              20 minutes)
# make clean   remove .venv, caches and demo/run/
# Each target first makes .venv and installs into it what it needs; PYTHON picks the interpreter.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check
# Runs scripts one after another, also after one failed; fails if any did.
RUN_ALL = failed=0; for script in $(1); do echo "== $$script"; $(PY) $$script || failed=1; done; \
          exit $$failed

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo stars test test-tap test-slurm test-browser lint bench calibration clean
.DEFAULT_GOAL := demo

demo: $(VENV)/run.stamp
	@$(PY) demo/run_demo.py

stars: $(VENV)/run.stamp
	@$(PY) demo/run_stars.py

test: $(VENV)/dev.stamp
	@$(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadscope

test-tap: $(VENV)/dev.stamp
	@$(PY) -m pytest -q -rs -m tap

test-slurm: $(VENV)/dev.stamp
	@$(PY) -m pytest -q -rs -m slurm

test-browser: $(VENV)/dev.stamp
	@$(PY) -m pytest -q -rs -m browser

lint: $(VENV)/dev.stamp
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check .

bench: $(VENV)/dev.stamp
	@$(call RUN_ALL, benchmarks/bench_*.py)

calibration: $(VENV)/dev.stamp
	@$(call RUN_ALL, benchmarks/calibration_*.py benchmarks/peer_mlp.py)

clean:
	@rm -rf $(VENV) demo/run .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "no working venv module: on Debian, apt install python3-venv" >&2; exit 1; }

$(VENV)/run.stamp: requirements.txt | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV) (about 2.6 GB, a few minutes the first time)"
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	@echo "installing requirements-dev.txt into $(VENV)"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@
