# make quickstart    run the quickstart notebook on the demo model, save it as out/quickstart.html
# make test          every test, in a browser too
# make lab           open the quickstart notebook live in JupyterLab
#
# PYTHON=python3.12  the interpreter to build .venv with (3.11 to 3.13)
# PIP_ARGS="..."     passed to every `pip install`, for instance an index with CPU builds of PyTorch:
#                    on Linux, the default index gives its CUDA build, which works without a GPU but takes 5 GB

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
OLDEST ?= .venv-oldest
HARNESS ?= .venv-harness
BIN := $(VENV)/bin
QUICKSTART := notebooks/01_quickstart.ipynb
BROWSERS := chromium chromium-browser google-chrome
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS)

.PHONY: quickstart test lab lint format bench notebooks constraints chromium clean

quickstart: $(VENV)/.all
	$(BIN)/python -m tools.notebooks report $(QUICKSTART) out/quickstart.html

test: $(VENV)/.test $(OLDEST)/.ready $(HARNESS)/.ready chromium
	$(HARNESS)/bin/python -m pytest -q tests/tasks/with_lm_eval.py
	$(OLDEST)/bin/python -m pytest -q -m "not browser" tests/panels
	$(BIN)/python -m pytest

lab: $(VENV)/.all
	$(BIN)/python -m jupyter lab $(QUICKSTART)

lint: $(VENV)/.lint
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy workbench tools

format: $(VENV)/.lint
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

bench: $(VENV)/.test chromium
	for benchmark in errors first_heatmap memory; do echo "== $$benchmark"; $(BIN)/python -m benchmarks.$$benchmark || exit 1; done

# Run every notebook again and store its outputs, without widget state.
notebooks: $(VENV)/.test chromium
	$(BIN)/python -m tools.notebooks refresh notebooks/*.ipynb

# The newest versions that pyproject.toml allows, as the pins of constraints.txt.
constraints:
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/python -m pip install --quiet $(PIP_ARGS) --editable ".[all,test,lint]"
	(grep '^#' constraints.txt; build/newest/bin/python -m pip freeze --all --exclude-editable --exclude pip \
		| grep -v -i -e '^nvidia-' -e '^cuda-' -e '^triton=' | sed 's/+.*//') > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) $(OLDEST) $(HARNESS) build dist out

# --- environments -------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[all]"
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[all,test]"
	@touch $@ $(VENV)/.all

$(VENV)/.lint: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[all,lint]"
	@touch $@ $(VENV)/.all

# The oldest notebook libraries in front; everything else (torch is large) from the first environment.
$(OLDEST)/.ready: requirements-oldest.txt $(VENV)/.test
	$(BIN)/python -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps --requirement requirements-oldest.txt
	printf '%s\n' '$(CURDIR)' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		> "$$($(OLDEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first-environment.pth"
	@touch $@

# lm-evaluation-harness and math-verify, which hold a package back, in front; everything else from the first one.
$(HARNESS)/.ready: pyproject.toml $(VENV)/.test
	$(BIN)/python -m venv --clear $(HARNESS)
	printf '%s\n' '$(CURDIR)' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		> "$$($(HARNESS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first-environment.pth"
	$(HARNESS)/bin/python -m pip install --quiet $(PIP_ARGS) "lm-eval>=0.4.9" "math-verify[antlr4-13-2]>=0.9"
	@touch $@

# The browser test drives a Chromium that is on the machine.
chromium:
	@for browser in $(BROWSERS); do command -v $$browser > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -q -y chromium; \
	elif command -v sudo > /dev/null; then sudo apt-get update -q && sudo apt-get install -q -y chromium; \
	else echo "The browser test needs Chromium, as root: apt-get install chromium"; exit 1; fi
