# One command per chore. Each target sets up what it needs: a virtual environment from the hashed lock.
#
#   make demo         the whole story on this machine
#   make test         lint, then every test on SQLite, PostgreSQL and MariaDB
#   make test-lowest  the suite on the lowest versions that pyproject.toml allows
#   make lint         ruff, mypy
#   make bench        the quick benchmarks; fails where a ratio misses its bar in benchmarks/bars.toml
#   make torture      every fault many times, with figures: hours
#   make mutants      core with a line changed at a time: does a test notice?
#   make lock         compile requirements/ after a change in pyproject.toml (UPGRADE=1: to the newest versions)
#   make clean        remove everything that make has made

PYTHON  ?= python3
WORKERS ?= 4
ARGS    ?=

VENV   := .venv
LOWEST := .venv-lowest
BIN    := $(VENV)/bin

export UV_CUSTOM_COMPILE_COMMAND := make lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The suite starts processes by the hundred: without bytecode each of them would compile SQLAlchemy and Alembic anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-lowest lint collected bench torture mutants lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/outbox demo $(ARGS)

test: $(VENV)/.ready
	$(MAKE) --no-print-directory --jobs=2 lint collected
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --durations=10 $(ARGS)

# tests/project is about the repository, not about the versions below it.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/pytest -n $(WORKERS) --dist worksteal --durations=10 --ignore=tests/project $(ARGS)

# pytest rewrites each assert of the suite, once: workers that start together would all do it.
collected: $(VENV)/.ready
	$(BIN)/pytest --collect-only --quiet > /dev/null

lint: $(VENV)/.ready
	$(BIN)/ruff check --extend-exclude $(LOWEST) .
	$(BIN)/ruff format --check --extend-exclude $(LOWEST) .
	$(BIN)/mypy --strict outbox

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks quick --bars $(ARGS)

TORTURE = $(BIN)/pytest -q -s -n 0
torture: $(VENV)/.ready
	OUTBOX_TEST_KILLS=1000 $(TORTURE) tests/test_killed.py -k sqlite
	OUTBOX_TEST_KILLS=300 OUTBOX_TEST_WORKERS=4 $(TORTURE) tests/test_killed.py -k postgresql
	OUTBOX_TEST_KILLS=100 $(TORTURE) tests/test_killed.py -k mariadb
	OUTBOX_TEST_STOPS=50 $(TORTURE) tests/faults/test_stopped_worker.py
	OUTBOX_TEST_FAILOVERS=10 $(TORTURE) tests/faults/test_failover.py
	OUTBOX_TEST_OUTAGE_ROWS=1000000 $(TORTURE) tests/faults/test_outage.py
	OUTBOX_TEST_POISON_ROWS=100000 $(TORTURE) tests/faults/test_poison.py
	OUTBOX_TEST_SEEDS=5000 $(TORTURE) tests/simulation
	OUTBOX_TEST_BODIES=25000 $(TORTURE) tests/otel/test_otel_bodies.py
	OUTBOX_TEST_BEACON_DOWN_SECONDS=60 $(TORTURE) tests/otel/test_example_service.py

# From scratch: mutmut would not try its survivors again against tests that have changed.
mutants: WORKERS := 1
mutants: $(VENV)/.ready
	$(BIN)/coverage run --branch --source outbox/core -m pytest -q tests/core
	$(BIN)/coverage report --fail-under=100 --show-missing --skip-covered
	rm -rf mutants
	nice -n 15 $(BIN)/mutmut run --max-children $(WORKERS)
	$(BIN)/python -m tests.mutation.score

COMPILE = $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links

lock: $(VENV)/.uv
	$(COMPILE) $(if $(UPGRADE),--upgrade) --universal --output-file requirements/uv.txt requirements/uv.in
	$(COMPILE) $(if $(UPGRADE),--upgrade) --universal --output-file requirements/dev.txt \
		pyproject.toml --all-extras --group dev
	$(COMPILE) --upgrade --resolution lowest-direct --output-file requirements/lowest.txt \
		pyproject.toml --all-extras --group dev

clean:
	rm -rf $(VENV) $(LOWEST) .venv-peers dist build mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache .coverage*
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
