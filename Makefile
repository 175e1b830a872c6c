# On a fresh Debian machine with Python 3.11 or later, git and make:
#   make serve   serves the demo on http://127.0.0.1:8000 (APP=module:attr serves another application)
#   make stack   serves examples/stack: nginx, Fulgate, Django and MariaDB
#   make test    formatter, linter, types, imports, and the test suite on each Python there is
# Each sets up what it needs. PYTHON=/path/to/python chooses the interpreter.

APP = fulgate.demo:app
HTTP = 127.0.0.1:8000
SOCKET = $(CURDIR)/.run/fulgate.sock
SERVE =
STACK =
PYTEST =
BENCH =
FUZZ =
FUZZ_SECONDS = 60
FUZZ_OPTIONS =
# So many tests at a time, since most of them wait; JOBS=0 runs them in the one process itself.
JOBS = 4

VENV = .venv
BIN = $(VENV)/bin
SETUP = sh scripts/setup.sh
SOURCES = src tests $(wildcard bench docs scripts)

# What the tests run for real; "cc" compiles the shim that makes system calls fail.
PROGRAMS = nginx apache2 mod_fcgid mod_jk lighttpd lighttpd-next haproxy caddy php-fpm spawn-fcgi cc \
	libfcgi-dev uwsgi go curl chromium mariadb mariadbd ip h2o systemd-analyze unshare wrk
# What the benchmark runs, and compiles with; Go is measured where it is installed.
BENCH_PROGRAMS = nginx wrk cc strace php-fpm libfcgi-dev libev-dev python3-dev

RUN_TESTS = "$(CURDIR)/scripts/run_tests.py" $(JOBS)

# The tests start Python a thousand times: what pytest compiles it keeps, for them too.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.PHONY: help serve stack test check pytest pytest-compiled pytest-others programs wheels format docs bench corpus conform fuzz clean

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

stack: $(VENV)/.dev
	@$(SETUP) programs nginx mariadb mariadbd
	@exec $(BIN)/python examples/stack/start.py $(STACK)

# What is not the main run goes beside it, since tests mostly wait; what it says comes last, so that
# the quickest answer comes first.
test: check programs
	@mkdir -p .run; \
	$(MAKE) --no-print-directory pytest-compiled pytest-others >.run/others.log 2>&1 & others=$$!; \
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
	$(BIN)/python $(RUN_TESTS) $(PYTEST)

# The same tests of the compiled build: of a wheel that is installed, with src/ out of the way. On
# another version than the main one, if there is one.
pytest-compiled: $(VENV)/.dev programs
	@python=$$($(SETUP) others | head -n 1); python=$${python:-$$($(SETUP) main)}; \
	$(SETUP) compiled $(VENV)-compiled "$$python" '[http,test]' .run/compiled && cd .run/compiled && \
	echo "the compiled build, on $$python:" && \
	FULGATE_TESTS_BUILD=compiled "$(CURDIR)/$(VENV)-compiled/bin/python" $(RUN_TESTS) -m 'not slow' \
		$(PYTEST)

# On each further version that is installed, all but what is slow because of real servers.
pytest-others: $(VENV)/.dev programs
	@$(SETUP) others | tail -n +2 | while read -r python; do \
		minor=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1; \
		venv=$(VENV)-$$minor; \
		if [ pyproject.toml -nt $$venv/.test ] || [ ! -e $$venv/.test ]; then \
			$(SETUP) venv $$venv "$$python" '.[http,test]' && touch $$venv/.test || exit 1; \
		fi; \
		echo "$$python:"; \
		$$venv/bin/python $(RUN_TESTS) -m 'not slow' $(PYTEST) </dev/null || exit 1; \
	done

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Capture the requests of tests/corpus anew from the web servers that are installed.
corpus: $(VENV)/.dev programs
	$(BIN)/python -m tests.servers.capture tests/corpus

# Hold other servers to the statements of FastCGI; docs/conformance.md has the table.
conform: $(VENV)/.dev programs
	$(BIN)/python -m tests.conform.table $(CONFORM)

# BENCH=--quick measures the most telling part; bench/run.py --help has more.
bench:
	@$(SETUP) programs $(BENCH_PROGRAMS)
	@python=$$($(SETUP) bench) && exec "$$python" bench/run.py $(BENCH)

# Fuzz each parser, or those that FUZZ names, for so many seconds. FUZZ_OPTIONS=--keep keeps what is
# found in tests/fuzz/corpus.
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.run $(FUZZ) --seconds $(FUZZ_SECONDS) $(FUZZ_OPTIONS)

# One that any machine takes, and one that is compiled for this one.
wheels: $(VENV)/.dev
	rm -rf build dist
	FULGATE_PURE=1 $(BIN)/python -m pip wheel -q --no-deps -w dist .
	rm -rf build
	FULGATE_COMPILE=1 $(BIN)/python -m pip wheel -q --no-deps -w dist .
	rm -rf build
	@ls dist

clean:
	rm -rf .venv .venv-3.* .venv-compiled build dist .run .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
