# make demo: everything once, on the embedded digits.  make test: the tests.
# make results: docs/results.md, hours on two cores; interrupted, it goes on.  make bench: benchmarks/RESULTS.md.
# On a machine with a CUDA device: make test-gpu; make gpu: benchmarks/RESULTS-gpu.md, at most 40 minutes; make
# results-gpu: docs/results_fashion_gpu.md, ResNet-32 and 1,000 epochs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Each process takes a stretch of files, whose fixtures it shares, and the slower one's rest at the end.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.PHONY: venv demo results results-gpu test test-oldest test-versions test-slow test-browser test-cluster test-gpu bench gpu lint format clean

venv: $(STAMP)

$(STAMP): requirements.txt requirements-extra.txt requirements-dev.txt
	@echo "installing into $(VENV): about 5 GB, some minutes"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

demo: venv
	$(PY) -m examples.demo

results: venv
	$(PY) -m examples.results

results-gpu: venv
	@$(PY) -m benchmarks.gpu.device
	$(PY) -m examples.results fashion_gpu

test: venv
	$(PY) -m pytest $(PARALLEL)

test-oldest: venv
	$(PY) -m nox -s "tests(oldest)" -- $(PARALLEL)

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
	@$(PY) -m benchmarks.gpu

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
