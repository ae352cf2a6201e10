# Every target sets up what it needs in .venv, and does nothing twice: a stamp file says what was done.

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench soak mutants fuzz how-long system fresh clean

VENV   := .venv
BIN    := $(VENV)/bin
# The first of these that is new enough makes the environment.
# The system's first. Debian's is no position-independent program, so that two processes of it (the halves) share what a
# CPU has learned of its branches: their round trip on one CPU is a quarter shorter than with one that is.
PYTHON ?= /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11
SOAK_SECONDS ?= 600
# Of `make fresh`: which Debian, as whom, and what runs there.
DEBIAN ?= bookworm
WHO    ?= root
RUN    ?= make demo && make test
FUZZ_SECONDS ?= 300

export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@echo "make demo    run an app through waylend on a compositor of our own; writes docs/demo.png"
	@echo "make test    lint, then all tests (those that need a program this machine lacks are skipped, and say so)"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench   measure, and compare with no proxy at all and with waypipe if it is installed"
	@echo "make soak    run clients against waylend for SOAK_SECONDS=$(SOAK_SECONDS), watching memory and fds"
	@echo "make mutants break the lines of defence one at a time; each has a test that must catch it (MUTANTS_ARGS='--only TEXT')"
	@echo "make fresh   make demo and make test on a Debian that was just installed; DEBIAN=bookworm|trixie, WHO=root|USER, RUN=COMMAND"
	@echo "make fuzz    fuzz what strangers send for FUZZ_SECONDS=$(FUZZ_SECONDS), guided by coverage where atheris can be had"
	@echo "make clean   remove .venv and what the tools left"

# --- what there must be ------------------------------------------------------------------------------------------------

find_python = $$(for python in $(PYTHON); do \
    $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

$(VENV)/made:
	@python=$(find_python); \
	[ -n "$$python" ] || { bash tests/apt-packages.sh python3-venv && python=$(find_python); }; \
	[ -n "$$python" ] || { \
	    echo "waylend needs Python 3.11 or newer with the module venv; name one: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	$$python -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && touch $@

# A dependency group (PEP 735) needs pip 25.1. The live group is large (Qt) and only the tests need it.
$(VENV)/installed: pyproject.toml $(VENV)/made
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

$(VENV)/installed-live: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group live
	@touch $@

# dpkg-query answers at once and offline; apt-get is asked only for what is missing.
system:
	@bash tests/apt-packages.sh

# --- what there is to do -----------------------------------------------------------------------------------------------

# A compositor of our own, waylend in front of it, and an app; when the app has its keymap, what it borrows is shown.
# The runtime directory is its own, too: there is none where nobody has logged in.
demo: $(VENV)/installed
	@mkdir -p docs
	@runtime=$$(mktemp -d) && trap 'rm -rf "$$runtime"' EXIT && \
	    XDG_RUNTIME_DIR="$$runtime" PATH="$(CURDIR)/$(BIN):$$PATH" waylend run --compositor shim --size 800x530 --screenshot docs/demo.png -- \
	    sh -c 'python examples/paint.py --frames 120 | while read -r line; do \
	        echo "$$line"; case "$$line" in keymap*) waylend leases;; esac; done'
	@echo "docs/demo.png shows what was on the screen"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: how-long system $(VENV)/installed-live lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

how-long:
	@echo "make test takes some 20 minutes on two cores (first of all it gets what is missing, up to 2 GB when installed)"

bench: system $(VENV)/installed
	$(BIN)/python -m bench

soak: $(VENV)/installed
	$(BIN)/python -m bench.soak --seconds $(SOAK_SECONDS)

mutants: $(VENV)/installed
	$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

# Needs root and debootstrap. For an ordinary user an administrator has installed the list, as `make system` asks for.
fresh:
	@bash tests/apt-packages.sh debootstrap
	@bash tests/fresh-root $(DEBIAN) $(WHO) '$(RUN)' $(if $(filter root,$(WHO)),,'bash tests/apt-packages.sh')

# atheris has no wheels for some Pythons: then the inputs are changed at random.
fuzz: $(VENV)/installed
	-$(BIN)/python -m pip install --quiet --group fuzz
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
