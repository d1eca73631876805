# The only set-up there is: `make up` on a fresh machine with Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt
STAMP_SERVER := .make/server
STAMP_DEV := .make/dev

.PHONY: up down test engines-test lint bench soak engines protos clean

up: $(STAMP_SERVER)
	$(BIN)/slice up
	$(BIN)/slice run smollm2 "Say hello to a new user of Slice in one short sentence."

down:
	$(BIN)/slice down

test: lint
	$(BIN)/python -m pytest

# Every engine that can be had here against one contract; prints a matrix engine x test and writes it to MATRIX.
MATRIX ?= .make/engines-matrix.md
engines-test: engines
	$(BIN)/python -m pytest -q -p tests.contract.matrix tests/contract --matrix $(MATRIX)

lint: $(STAMP_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP_DEV)
	$(BIN)/python -m bench

# The long loops: parts of one node and of three machines are killed at random, PostgreSQL is taken away for 5 minutes.
# Goes on where an earlier run stopped (.make/soak/), and writes bench/results/; ITEMS="node cluster outage" chooses.
ITEMS ?=
ROUNDS ?= 100
soak: $(STAMP_DEV)
	$(BIN)/python -m tests.soak $(ITEMS) --rounds $(ROUNDS)
	SLICE_MANY=full $(BIN)/python -m pytest -q -rP tests/many/test_streams.py

# Installs the engines that tests run on and makes their models (5 GB), once, outside the tree: tests/engine_models.py.
engines: $(STAMP_DEV)
	$(BIN)/python -m tests.engine_models

# Regenerates the checked-in gRPC stubs.
protos: $(STAMP_DEV)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		protos/slice/node/v1/node.proto protos/slice/routes/v1/routes.proto

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(STAMP_SERVER): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[server]'
	@mkdir -p .make && touch $@

$(STAMP_DEV): $(STAMP_SERVER)
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	@mkdir -p .make && touch $@

clean:
	rm -rf $(VENV) .make build *.egg-info
