# Needs Python 3.11 or newer with venv and pip; every target makes its environment by itself
# and keeps it in $(VENV) until pyproject.toml changes.

VENV ?= .venv
# The Python to make $(VENV) with; unset: the first one that tools/pythons finds.
PYTHON ?=
WORKERS ?= 2
ARGS ?=

BIN = $(VENV)/bin
INSTALL = python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-all test-lowest lint docs bench clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s%s\n", $$1, $$2}'

demo: $(VENV)/demo.group ## ask a sample application on a real server; SERVE=1 leaves it up
	@SERVE="$(SERVE)" $(BIN)/python -m examples.demo

test: $(VENV)/test.group ## run the test suite; ARGS="-k name" goes to pytest
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-all: ## run the test suite on every Python that is here
	@tools/pythons | while read -r version python; do \
		echo "Python $$version"; \
		$(MAKE) test PYTHON="$$python" VENV="$(VENV)-$$version" </dev/null || exit 1; \
	done

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

bench: $(VENV)/test.group ## measure what a layer of middleware costs
	$(BIN)/python -m benchmarks.grid $(ARGS)

clean: ## remove environments, caches and everything that was built
	rm -rf $(VENV) $(VENV)-* site build dist .cache .nox .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environments. A group is one of [dependency-groups] in pyproject.toml.

$(VENV)/%.group: pyproject.toml $(VENV)/made
	$(BIN)/$(INSTALL) --editable . --group $*
	@touch $@

$(VENV)-lowest/lowest.done: pyproject.toml tools/lowest.py $(VENV)-lowest/made
	$(@D)/bin/python tools/lowest.py > $(@D)/lowest.txt
	$(@D)/bin/$(INSTALL) --editable . --group lowest --constraint $(@D)/lowest.txt
	@touch $@

$(VENV)/made $(VENV)-lowest/made:
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
