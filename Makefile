# Needs Python 3.11 or newer with venv and pip; every target makes its environment by itself
# and keeps it in $(VENV) until pyproject.toml changes.

VENV ?= .venv
# The Python to make $(VENV) with; unset: the first one that tools/pythons finds.
PYTHON ?=
WORKERS ?= 2
ARGS ?=
# How long `make proof` takes.
MINUTES ?= 10
# Packages whose suites `make third-party` runs.
THIRD_PARTY ?= starlette-context slowapi cashews piccolo_api prometheus-fastapi-instrumentator starlette-admin mcp-context-forge

BIN = $(VENV)/bin
INSTALL = python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo demo-workers test test-all test-lowest lint docs bench bench-all bench-docs bench-page bench-servers bench-handshakes bench-ready compare-ready \
	transparency upstream third-party servers handshakes load proof soak attack mutate framing fastapis instrumented leaks corpus migrate-fuzz migrate-trees migrate-suites \
	pythons pyodide show-apps inspector-load answers browser proxies clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s%s\n", $$1, $$2}'

demo: $(VENV)/demo.group ## ask a sample application on a real server; SERVE=1 leaves it up
	@SERVE="$(SERVE)" $(BIN)/python -m examples.demo

demo-workers: $(VENV)/test.group ## ask four workers that count together in Redis, and stop it meanwhile
	@$(BIN)/python -m examples.workers

test: $(VENV)/test.group ## run the test suite; ARGS="-k name" goes to pytest
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-all: ## run the test suite on every Python that is here
	@tools/pythons | while read -r version python; do \
		echo "Python $$version"; \
		$(MAKE) test PYTHON="$$python" VENV="$(VENV)-$$version" </dev/null || exit 1; \
	done

pythons: ## have the Pythons that are not here, on a Debian, from its development suite
	@"$$(tools/pythons 2>/dev/null | sed -n '1s/^[^ ]* //p')" tools/fetch_pythons.py

test-lowest: $(VENV)-lowest/lowest.done ## run the test suite on the oldest supported dependencies
	$(VENV)-lowest/bin/python -m pytest -n $(WORKERS) -p tools.lowest_pytest $(ARGS)

lint: $(VENV)/lint.group ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

docs: $(VENV)/docs.group ## build the documentation into site/
	$(BIN)/zensical build --strict
	$(BIN)/mkdocs build --strict --quiet --theme mkdocs --site-dir .cache/mkdocs

bench: $(VENV)/test.group ## measure what layers cost; ARGS=--check fails when a target is missed
	$(BIN)/python -m benchmarks $(ARGS)

bench-all: ## measure what the targets need on every Python that is here
	@tools/pythons | while read -r version python; do \
		echo "Python $$version"; \
		$(MAKE) bench PYTHON="$$python" VENV="$(VENV)-$$version" ARGS="--targets grid $(ARGS)" </dev/null || exit 1; \
	done

bench-servers: $(VENV)/test.group ## measure what layers cost on uvicorn; needs Linux, wrk and two cores
	$(BIN)/python -m benchmarks servers $(ARGS)

bench-handshakes: $(VENV)/servers.group ## measure what layers cost a WebSocket; takes minutes
	$(BIN)/python -m benchmarks handshakes $(ARGS)

bench-docs: bench-all ## measure all but the servers, and put it into docs/performance.md
	$(MAKE) bench bench-page

bench-page: $(VENV)/test.group ## put what was measured last into docs/performance.md
	$(BIN)/python -m benchmarks.report

bench-ready: $(VENV)-ready/ready.group ## measure the ready-made layers beside those of others, on uvicorn; needs Linux, wrk
	$(VENV)-ready/bin/python -m benchmarks.ready $(ARGS)

compare-ready: $(VENV)-ready/ready.group ## put into docs/ready/ what these layers and those of others do, case by case
	$(VENV)-ready/bin/python -m tools.compare_ready $(ARGS)

transparency: $(VENV)/test.group ## put into docs/comparison.md what middleware changes unasked
	$(BIN)/python tools/transparency.py $(ARGS)

upstream: $(VENV)/test.group ## run the tests of Starlette and FastAPI with layers around every app, and those of BaseHTTPMiddleware on the drop-in
	$(BIN)/python tools/upstream.py .cache/suites --only starlette fastapi base-patched base-replaced $(ARGS)

third-party: $(VENV)/test.group ## run suites of others under patch_starlette(); COPIES=folder of them
	$(BIN)/python tools/upstream.py .cache/suites --copies $(COPIES) --only $(THIRD_PARTY) $(ARGS)

handshakes: $(VENV)/servers.group ## put into docs/websocket-servers.md what six servers do; takes minutes
	$(BIN)/python -m tools.handshakes $(ARGS)

servers: $(VENV)/servers.group ## put into docs/servers.md what nine servers do; takes minutes
	$(BIN)/python tools/servers.py $(ARGS)

corpus: $(VENV)/test.group ## run real middleware in pairs, before and after; ARGS=folder with an index
	$(BIN)/python tools/corpus.py $(ARGS)

migrate-fuzz: $(VENV)/test.group ## convert generated middleware and run it in pairs; ARGS="--count 20000"
	$(BIN)/python -m tools.migrate_fuzz $(ARGS)

migrate-trees: $(VENV)/test.group ## convert whole public trees; ARGS="FOLDER" of their git directories
	$(BIN)/python -m tools.migrate_trees $(ARGS)

migrate-suites: $(VENV)/test.group ## run suites of others before and after the codemod; ARGS="FOLDER" as there
	$(BIN)/python -m tools.migrate_suites .cache/migrate-suites $(ARGS)

load: $(VENV)/test.group ## ask a real server for half an hour; ARGS="--minutes 1 --server granian"
	$(BIN)/python tools/load.py $(ARGS)

proof: $(VENV)/test.group ## run every proof for its share of MINUTES; ARGS=--keep puts it into docs/proof.md
	$(BIN)/python -m tools.proof --minutes $(MINUTES) $(ARGS)

soak: $(VENV)/test.group ## run millions of random schedules; goes on where it was stopped
	$(BIN)/python -m tools.soak $(ARGS)

mutate: $(VENV)/test.group ## plant faults in the engine and see what notices; ARGS="--only gate"
	$(BIN)/python -m tools.mutate $(ARGS)

instrumented: $(VENV)-instrumented/instrumented.group ## edit layers under real instrumentation; ARGS="sentry ddtrace"
	$(VENV)-instrumented/bin/python -m tools.instrumented $(ARGS)

fastapis: $(VENV)/test.group ## run the tests of httpmw.fastapi on old and new versions of FastAPI
	$(BIN)/python -m tools.fastapis $(ARGS)

framing: $(VENV)/test.group ## compare 100,000 connections with a model of HTTP's framing
	$(BIN)/python -m tools.framing $(ARGS)

answers: $(VENV)/test.group ## ask the layers that answer with 1,000,000 random headers and 100,000 bodies
	$(BIN)/python -m tools.answers $(ARGS)

browser: $(VENV)/test.group ## see what Chromium makes of headers, codings and origins; needs chromium, openssl
	$(BIN)/python -m tools.browser $(ARGS)

proxies: $(VENV)/test.group ## see what nginx, HAProxy, Apache, Caddy and Varnish make of answers; those that are here
	$(BIN)/python -m tools.proxies $(ARGS)

attack: $(VENV)/test.group ## attack gates and bodies on real servers; ARGS="--server granian"
	$(BIN)/python -m tools.attack $(ARGS)

leaks: $(VENV)/test.group ## send a million requests and see what stays; ARGS="--backend trio"
	$(BIN)/python -m tools.leaks $(ARGS)

pyodide: .cache/pyodide/made ## ask httpmw on Pyodide, Python on WebAssembly; needs Node.js with npm
	node tools/pyodide.mjs .cache/pyodide

show-apps: $(VENV)/test.group ## draw and explain twenty real applications; ARGS="nicegui --draw"
	$(BIN)/python -m tools.show_apps $(ARGS)

inspector-load: $(VENV)/test.group ## ask an application with the inspector's page open as fast as it answers
	$(BIN)/python -m tools.inspector_load $(ARGS)

clean: ## remove environments, caches and everything that was built
	rm -rf $(VENV) $(VENV)-* site build dist .cache .nox .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environments. A group is one of [dependency-groups] in pyproject.toml.

$(VENV)/%.group: pyproject.toml $(VENV)/made
	$(BIN)/$(INSTALL) --editable . --group $*
	@touch $@

$(VENV)-instrumented/instrumented.group: pyproject.toml $(VENV)-instrumented/made
	$(@D)/bin/$(INSTALL) --editable . --group instrumented
	@touch $@

$(VENV)-ready/ready.group: pyproject.toml $(VENV)-ready/made
	$(@D)/bin/$(INSTALL) --upgrade --editable . --group ready
	@touch $@

$(VENV)-lowest/lowest.done: pyproject.toml tools/lowest.py $(VENV)-lowest/made
	$(@D)/bin/python tools/lowest.py > $(@D)/lowest.txt
	$(@D)/bin/$(INSTALL) --editable . --group lowest --constraint $(@D)/lowest.txt
	@touch $@

# Pure wheels of what httpmw needs; httpmw itself is read from here.
.cache/pyodide/made: pyproject.toml $(VENV)/made
	rm -rf $(@D)
	npm install --silent --no-audit --no-fund --prefix $(@D) 'pyodide@^314'
	$(BIN)/$(INSTALL) --target $(@D)/site-packages --only-binary :all: --python-version 3.14 \
		--platform any starlette anyio typing-extensions
	@touch $@

$(VENV)/made $(VENV)-instrumented/made $(VENV)-ready/made $(VENV)-lowest/made:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then python=$$(tools/pythons 2>/dev/null | sed -n '1s/^[^ ]* //p'); fi; \
	if ! "$$python" -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null; then \
		echo "httpmw needs Python 3.11 or newer with venv, found $${python:-none;}" >&2; \
		echo "Name one: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; \
	fi; \
	echo "making $(@D) with $$python"; \
	"$$python" -m venv --clear $(@D)
	$(@D)/bin/$(INSTALL) --upgrade 'pip>=25.1'
	@touch $@

.SECONDARY:
