# `make demo` and `make test` do all set-up by themselves, in .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := router ttt policies store tests benchmarks

.PHONY: demo test check quick test-slow audit format clean

demo: .venv/.demo
	@$(BIN)/ttt-router demo

test: check quick test-slow

# The client of examples/node; without npm its test is skipped.
examples/node/node_modules: examples/node/package.json
	@npm install --prefix examples/node --no-package-lock --no-audit --no-fund
	@touch $@

check: .venv/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not slow" -n 2 --dist loadfile

test-slow: .venv/.dev
	$(BIN)/pytest -q -m slow

# Known weaknesses of the pinned dependencies; asks PyPI's advisories, so it needs the network.
audit: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

format: .venv/.dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Set-up. A stamp is newer than what it was installed from; a failed install leaves none.
.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "ttt-router needs Python 3.11 or newer, and there is no $(PYTHON): install it, or name one, e.g. 'make PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ttt-router needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one, e.g. 'make PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "This Python lacks the venv module: install it (Debian and Ubuntu: apt install python3-venv) and run make again." >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) -V) ..."
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# pip writes to .venv/install.log; what it downloads and installs is shown, and a dot every ten seconds.
define install
@echo "Installing $(1) (torch is large: this can take minutes; log: .venv/install.log) ..."
@rm -f .venv/.failed; ( while sleep 10 >/dev/null 2>&1; do printf '.'; done ) & dots=$$!; trap "kill $$dots" EXIT; \
{ $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
	--constraint constraints.txt --editable '$(1)' 2>&1 || touch .venv/.failed; } \
	| tee .venv/install.log | grep -E '^ *(Downloading|Building|Installing|ERROR)' | cut -c 1-110; \
if [ -e .venv/.failed ]; then echo "The installation failed; its last lines:" >&2; tail -n 5 .venv/install.log >&2; exit 1; fi
@touch $@
endef

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[plot])

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[dev])
	@touch .venv/.demo
