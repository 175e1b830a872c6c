# On a fresh Debian machine with Python 3.11 or later, git and make:
#   make serve   serves the demo on http://127.0.0.1:8000 (APP=module:attr serves another application)
#   make test    formatter, linter, types, imports, and the test suite on each Python there is
# Both set up what they need. PYTHON=/path/to/python chooses the interpreter.

APP = fulgate.demo:app
HTTP = 127.0.0.1:8000
SOCKET = $(CURDIR)/.run/fulgate.sock
SERVE =
PYTEST =

VENV = .venv
BIN = $(VENV)/bin
SETUP = sh scripts/setup.sh
SOURCES = src tests $(wildcard bench docs scripts)

# What the tests run for real; "cc" compiles the shim that makes system calls fail.
PROGRAMS = nginx apache2 mod_fcgid lighttpd haproxy caddy php-fpm spawn-fcgi cc curl

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.PHONY: help serve test check pytest pytest-others programs format docs bench corpus clean

help:
	@sed -n 's/^# \?//p;/^$$/q' Makefile

$(VENV)/.serve: pyproject.toml scripts/setup.sh
	@python=$$($(SETUP) main) && $(SETUP) venv $(VENV) "$$python" '.[http]'
	@touch $@

$(VENV)/.dev: pyproject.toml scripts/setup.sh
	@python=$$($(SETUP) main) && $(SETUP) venv $(VENV) "$$python" '.[http,dev]'
	@touch $@ $(VENV)/.serve

# The shell gives way to fulgate, so that Ctrl+C meets nothing between.
serve: $(VENV)/.serve
	@mkdir -p "$(dir $(SOCKET))"
	@exec $(BIN)/fulgate serve "$(APP)" --bind "unix:$(SOCKET)" --http "$(HTTP)" $(SERVE)

# The other versions of Python run beside the main one, since tests mostly wait; what they say comes
# last, so that the quickest answer comes first.
test: check programs
	@mkdir -p .run; \
	$(MAKE) --no-print-directory pytest-others >.run/others.log 2>&1 & others=$$!; \
	main=0; $(MAKE) --no-print-directory pytest || main=$$?; \
	rest=0; wait $$others || rest=$$?; \
	cat .run/others.log; \
	[ $$main = 0 ] && [ $$rest = 0 ]

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

programs:
	@$(SETUP) programs $(PROGRAMS)

pytest: $(VENV)/.dev programs
	$(BIN)/python -m pytest $(PYTEST)

# On each further version that is installed, all but what is slow because of real servers.
pytest-others: $(VENV)/.dev programs
	@$(SETUP) others | while read -r python; do \
		minor=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1; \
		venv=$(VENV)-$$minor; \
		if [ pyproject.toml -nt $$venv/.test ] || [ ! -e $$venv/.test ]; then \
			$(SETUP) venv $$venv "$$python" '.[http,test]' && touch $$venv/.test || exit 1; \
		fi; \
		echo "$$venv/bin/python -m pytest -m 'not slow'"; \
		$$venv/bin/python -m pytest -m 'not slow' $(PYTEST) </dev/null || exit 1; \
	done

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Capture the requests of tests/corpus anew from the web servers that are installed.
corpus: $(VENV)/.dev programs
	$(BIN)/python -m tests.servers.capture tests/corpus

bench: $(VENV)/.dev
	@$(SETUP) programs nginx wrk
	$(BIN)/python bench/run.py

clean:
	rm -rf .venv .venv-3.* build dist .run .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
