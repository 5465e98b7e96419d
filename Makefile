# make demo          set up, then compress, export and measure the embedded example
# make test          set up, then run the quick tests of every tier, 10 minutes on two cores

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests that share what is expensive to make stay in one worker; tests/support/tiers.py orders them.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder
DEBIAN := $(shell cat debian-packages.txt)

.PHONY: demo test test-unit test-slow lint format docs prebuilt native-runner debian clean help

help:
	@sed -n 's/^# make/make/p' $(MAKEFILE_LIST)

demo: .venv/demo
	$(BIN)/edgecompress export --target android

test: .venv/all .venv-tflite-runtime/installed debian
	$(PYTEST) -m "not slow"

# make test-unit     the quick tests of single modules and the laws, 3 minutes
test-unit: .venv/all
	$(PYTEST) -m "not slow" tests/unit tests/laws

# make test-slow     all the other tests, hours
test-slow: .venv/all .venv-tflite-runtime/installed debian
	$(PYTEST) -m slow

# make lint          style, types and import contracts
lint: .venv/all
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# make format        put every file into the project's style
format: .venv/all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# make docs          write the generated pages and build the site into build/site; it opens from disk
docs: .venv/docs
	$(BIN)/python docs/site/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file docs/site/mkdocs.yml

# make prebuilt      build examples/prebuilt anew from the embedded example
prebuilt: .venv/demo
	$(BIN)/python examples/prebuilt/build.py

# make native-runner build the runner for 64-bit ARM devices without Python; docs/guide/devices.md
native-runner: .venv/python
	$(BIN)/python device_tests/runners/native/build.py

# make clean         remove what make made
clean:
	rm -rf .venv .venv-tflite-runtime .venv-peers .emulated .native-runner build/site

.venv/python:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/python pyproject.toml constraints.txt
	$(PIP) --editable '.[tflite,devices]'
	touch $@

.venv/docs: .venv/python pyproject.toml constraints.txt
	$(PIP) --editable '.[docs]'
	touch $@

.venv/all: .venv/python pyproject.toml constraints.txt
	$(PIP) --editable '.[all,dev,docs]'
	touch $@ .venv/demo .venv/docs

# The last release of tflite-runtime needs numpy 1, so it lives alone; with it the reader of TFLite metadata, whose other needs (protobuf 3) clash
# with everything and are not needed for reading.
.venv-tflite-runtime/installed:
	$(PYTHON) -m venv .venv-tflite-runtime
	.venv-tflite-runtime/bin/python -m pip install --quiet --disable-pip-version-check tflite-runtime==2.14.0 'numpy<2' pillow flatbuffers
	.venv-tflite-runtime/bin/python -m pip install --quiet --disable-pip-version-check --no-deps tflite-support==0.4.4
	touch $@

# Servers and a browser for the tests: installed where that is allowed; without them those tests are skipped and say so.
debian:
	@if dpkg --status $(DEBIAN) >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) >/dev/null; \
	else echo "not installed, and not root on Debian or Ubuntu: $(DEBIAN); tests that need them are skipped"; fi
