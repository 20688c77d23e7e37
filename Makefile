# One command per chore. Each target sets up what it needs: a virtual environment from the hashed lock.
#
#   make demo         the whole story on this machine
#   make test         lint, then every test on SQLite, PostgreSQL and MariaDB
#   make test-lowest  the suite on the lowest versions that pyproject.toml allows
#   make lint         ruff, mypy
#   make bench        benchmarks
#   make lock         compile requirements/ after a change in pyproject.toml (UPGRADE=1: to the newest versions)
#   make clean        remove everything that make has made

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV   := .venv
LOWEST := .venv-lowest
BIN    := $(VENV)/bin

export UV_CUSTOM_COMPILE_COMMAND := make lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-lowest lint bench lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/outbox demo $(ARGS)

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --durations=10 $(ARGS)

# tests/project is about the repository, not about the versions below it.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/pytest -n $(WORKERS) --dist worksteal --durations=10 --ignore=tests/project $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check --extend-exclude $(LOWEST) .
	$(BIN)/ruff format --check --extend-exclude $(LOWEST) .
	$(BIN)/mypy --strict outbox

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks $(ARGS)

COMPILE = $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links

lock: $(VENV)/.uv
	$(COMPILE) $(if $(UPGRADE),--upgrade) --universal --output-file requirements/uv.txt requirements/uv.in
	$(COMPILE) $(if $(UPGRADE),--upgrade) --universal --output-file requirements/dev.txt \
		pyproject.toml --all-extras --group dev
	$(COMPILE) --upgrade --resolution lowest-direct --output-file requirements/lowest.txt \
		pyproject.toml --all-extras --group dev

clean:
	rm -rf $(VENV) $(LOWEST) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache .coverage*
	find outbox tests benchmarks migrations -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp each: a warm run compares a few dates. uv comes by pip, everything else by uv.
$(VENV)/.uv: requirements/uv.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/uv.txt
	touch $@

# $(1): the virtual environment, $(2): its lock
define sync
	$(BIN)/uv pip sync --quiet --python $(1)/bin/python --require-hashes $(2) requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(1)/bin/python --no-deps --no-build-isolation --editable .
	touch $(1)/.ready
endef

$(VENV)/.ready: requirements/dev.txt pyproject.toml $(VENV)/.uv
	$(call sync,$(VENV),requirements/dev.txt)

$(LOWEST)/.ready: requirements/lowest.txt pyproject.toml $(VENV)/.uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(call sync,$(LOWEST),requirements/lowest.txt)
