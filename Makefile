# One verb per task; CI calls exactly these. Everything is installed inside this folder: .tools, .venv, build.

PYTHON ?= python3
UV_VERSION := 0.13.8
UV := $(if $(shell command -v uv 2>/dev/null),uv,.tools/bin/uv)
BIN := .venv/bin
export UV_PYTHON_DOWNLOADS ?= never

.PHONY: demo test setup check types lint imports unit security bench clean help

help:  ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

demo: setup  ## 164 programming problems, each in a fresh sandbox, over a WebSocket
	$(BIN)/python -m benchmarks.demo

test: setup check unit  ## everything that CI runs

setup: build/.setup  ## install the project and the guest's libraries into this folder

.tools/bin/uv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools "uv==$(UV_VERSION)"

build/.setup: pyproject.toml uv.lock envs/coding_env/pyproject.toml sandbox/guest-requirements.txt $(filter .tools/%,$(UV))
	$(UV) sync --quiet --frozen --all-packages --all-extras --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	$(BIN)/python -m sandbox install
	@mkdir -p build && touch $@

check: lint types imports  ## style, types and import rules

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

unit:
	$(BIN)/pytest

security: setup  ## attack every wall
	$(BIN)/pytest tests/security

bench: setup  ## the figures of the README, on this machine, beside their peers
	$(BIN)/python -m benchmarks --json build/bench.json

clean:  ## remove what setup made
	rm -rf .venv .tools build
