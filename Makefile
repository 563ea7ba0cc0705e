# make demo          run the whole pipeline on the digits; takes a few minutes
# make test          run the tests with the newest library versions
# make test-oldest   run the tests that depend on library versions, with the oldest ones
# make results       write docs/results.md; takes hours on two cores; if interrupted, run it again to continue
#                    PLAN=length HOURS=8: another plan, and only the seeds and lengths that fit 8 hours
# make bench         write benchmarks/RESULTS.md
#
# With a CUDA device:
# make test-gpu      run the tests that need it
# make gpu           write benchmarks/RESULTS-gpu.md; takes at most 40 minutes (MINUTES=8: the parts that fit)
# make results-gpu   write docs/results_fashion_gpu.md (ResNet-32, 1,000 epochs). MINUTES=8 stops after 8 minutes.
#                    To continue on another machine, copy runs/fashion_gpu.zip there and run the command again.
#
# Slow, run from time to time: make test-slow, test-versions, test-browser (Chromium), test-cluster (Slurm), test-tools
# (the soak programs in tools/).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# worksteal: each process runs a block of files and shares their fixtures; idle processes take tests from busy ones.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.PHONY: venv venv-oldest demo results results-gpu test test-oldest test-tools test-versions test-slow test-browser test-cluster test-gpu bench gpu lint format clean

venv: $(STAMP)

$(STAMP): requirements.txt requirements-extra.txt requirements-dev.txt
	@echo "installing into $(VENV): about 5 GB, takes some minutes"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

demo: venv
	$(PY) -m examples.demo

results: venv
	$(PY) -m examples.results $(PLAN) $(if $(HOURS),--hours $(HOURS))

results-gpu: venv
	@$(PY) -m benchmarks.gpu.device
	@mkdir -p runs
	$(PY) -m examples.results $(or $(PLAN),fashion_gpu) --archive runs/$(basename $(notdir $(or $(PLAN),fashion_gpu))).zip \
		$(if $(MINUTES),--minutes $(MINUTES))

test: venv
	$(PY) -m pytest $(PARALLEL)

venv-oldest: venv
	$(PY) -m nox --install-only -s "tests(oldest)"

test-oldest: venv
	$(PY) -m nox -s "tests(oldest)" -- $(PARALLEL) --version-dependent

test-tools: venv
	$(PY) -m pytest tools $(PARALLEL)

test-versions: venv
	$(PY) -m nox -- $(PARALLEL)

test-slow: venv
	$(PY) -m pytest -m slow $(PARALLEL)

test-gpu: venv
	@$(PY) -m benchmarks.gpu.device
	$(PY) -m pytest -m gpu

bench: venv
	$(PY) -m benchmarks

gpu: venv
	@$(PY) -m benchmarks.gpu $(if $(MINUTES),--minutes $(MINUTES))

test-browser: venv
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ echo "no Chromium found; on Debian or Ubuntu: apt-get update && apt-get install -y chromium" >&2; exit 1; }
	$(PY) -m pytest -m browser tests/report/test_report_browser.py

test-cluster: venv
	@PATH="$$PATH:/usr/sbin:/sbin"; for program in munged slurmctld slurmd srun; do command -v $$program >/dev/null || \
		{ echo "no $$program found; on Debian or Ubuntu, as root: apt-get update && apt-get install -y slurm-wlm munge" >&2; exit 1; }; done
	$(PY) -m pytest -m cluster tests/cluster

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) .nox .pytest_cache .ruff_cache
