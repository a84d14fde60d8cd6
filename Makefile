# Each target sets up what it needs; nothing but Python 3.11 to 3.13 and make is expected.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: chat test check bench clean

chat: .venv/ready
	@$(BIN)/smallfirst chat

test: check
	$(BIN)/python -m tests.run

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m cogapp --check -p 'import sys; sys.path.insert(0, ".")' README.md

bench: .venv/ready
	$(BIN)/smallfirst bench --turns

clean:
	rm -rf .venv .files .pytest_cache .mypy_cache .ruff_cache build dist

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Small First needs Python 3.11, 3.12 or 3.13. Install one, or name it: make chat PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
