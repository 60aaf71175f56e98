# Everything a fresh machine needs: `make demo` runs the main job end to end, `make test` the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
PEER := .venv-anomalib

.PHONY: install curl machines demo test faults bench bench-quick browser lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "installing python3-venv"; apt-get update -q && apt-get install -q -y python3-venv; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "autoad needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Environment, demo dataset, a search over all eight algorithms, two pictures scored with heatmaps; then served,
# promoted, asked for scores over HTTP, and rolled back.
demo: install curl
	@.ci/demo $(BIN)/autoad $(DEMO)

curl:
	@command -v curl >/dev/null || { echo "installing curl"; apt-get update -q && apt-get install -q -y curl; }

# What the tests of several machines need of Debian: namespaces, a database server, and Prometheus's checker.
machines:
	@command -v ip nsenter setpriv ps >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
		{ apt-get update -q && apt-get install -q -y iproute2 util-linux procps postgresql; }
	@command -v promtool >/dev/null || [ -x $(BIN)/promtool ] || $(MAKE) --no-print-directory $(BIN)/promtool

# Out of its package, which as a whole would start a Prometheus on every interface.
$(BIN)/promtool: | $(VENV)/.installed
	apt-get update -q
	folder=$$(mktemp -d) && cd $$folder && apt-get download -q prometheus && dpkg-deb --extract prometheus_*.deb . && \
		install -m 755 usr/bin/promtool $(CURDIR)/$(BIN)/promtool && rm -r $$folder

test: install machines browser
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

# Every fault five times over; prints how long each took to recover from.
faults: install machines
	$(BIN)/python -m pytest -m faults --capture=no

# Beside anomalib (in an environment of its own), on the demo dataset or on DATA="FOLDER...". A run that was cut off goes
# on; remove the folder of its results to begin anew.
bench: install $(PEER)/.installed
	$(BIN)/python benchmarks/reference/compare.py --anomalib $(PEER)/bin/python --results bench/reference.jsonl $(if $(DATA),--data $(DATA))

bench-quick: install $(PEER)/.installed
	rm -rf bench/quick
	$(BIN)/python benchmarks/reference/compare.py --anomalib $(PEER)/bin/python --results bench/quick/reference.jsonl --quick $(if $(DATA),--data $(DATA))

$(PEER)/.installed:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet anomalib
	@touch $@

# The report's tests look at it as a reader does.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ echo "installing chromium"; apt-get update -q && apt-get install -q -y chromium; }

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(DEMO) $(VENV) $(PEER) bench build *.egg-info
