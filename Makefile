# Commands for users and developers. The first run makes a Python environment (.venv, or $REFSEG_VENV); later runs reuse
# it. REFSEG_SYSTEM=1 uses the current environment as it is. Details: docs/installation.md

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint format docs doctor wheel clean env-key python-found

# PYTHON=... picks the interpreter. The default is the first one that runs and is new enough. `python` comes first if an
# environment is active or REFSEG_SYSTEM=1 is set.
ifeq ($(origin PYTHON),undefined)
  PYTHON := $(shell for candidate in $${VIRTUAL_ENV:+python} $${CONDA_PREFIX:+python} \
      $${REFSEG_SYSTEM:+python python3} python3.11 python3.12 python3.10 python3; do \
    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && \
      command -v "$$candidate" && break; done)
endif

# In recipes, $(ENV) sets $$py to the environment's Python, and $(RUN) runs it on this clone, even if the `refseg` of a
# shared environment is another clone.
SETUP = py="$$("$(PYTHON)" tools/dev/setup_env.py $(1))" || exit 1
CODE = setup.py projects tools tests configs
ENV = $(call SETUP,)
RUN = PYTHONPATH="$(CURDIR)/projects$${PYTHONPATH:+:$$PYTHONPATH}" "$$py"
STYLE = $(RUN) -m ruff check $(CODE) && $(RUN) -m ruff format --check $(CODE)
CACHED = PYTHONDONTWRITEBYTECODE=  # without bytecode files, every test process would compile all tests again
SMOKE = tests/test_configs.py tests/evaluation/test_protocols.py tests/inference/test_predict.py

help:  ## list the targets
	@echo "make TARGET   (PYTHON=python3.11 picks the interpreter; REFSEG_SYSTEM=1 uses your environment as it is)"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
	  printf '  %-8s %s\n' "$$name" "$$what"; done

setup: python-found  ## make the environment and print its Python
	@$(ENV); echo "$$py"

demo: python-found  ## generate RefShapes, train a small model, evaluate it, write a report (work_dirs/quickstart)
	@$(call SETUP,--runtime); $(RUN) -m refseg.cli quickstart $(ARGS)

test: python-found  ## run the tests in parallel; ARGS="tests/ops -k triton" goes to pytest (-n 0: in one process)
	@$(ENV); $(CACHED) $(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

check: python-found  ## check style and run the smoke tests (a step of each method, a protocol, predict): under a minute
	@$(ENV); $(STYLE) && $(CACHED) $(RUN) -m pytest -m smoke -q $(SMOKE)

lint: python-found  ## check style, types (mypy takes a minute the first time) and the documentation's links
	@$(ENV); $(STYLE) && $(RUN) -m mypy && "$$py" tools/dev/check_docs.py

format: python-found  ## rewrite the code in the project's style
	@$(ENV); $(RUN) -m ruff check --fix-only $(CODE) && $(RUN) -m ruff format $(CODE)

docs: python-found  ## build the documentation into build/site; a broken link is an error
	@$(ENV); NO_MKDOCS_2_WARNING=1 "$$py" -m mkdocs build --quiet && echo "documentation: build/site/index.html"

doctor: python-found  ## check the installation, and print a command for each problem
	@$(call SETUP,--no-check); $(RUN) -m refseg.cli doctor $(ARGS)

wheel: python-found  ## build a wheel into dist/
	@$(ENV); "$$py" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist . \
	  && ls -l dist/*.whl

clean:  ## remove the environment, caches and build products (not data, not work_dirs)
	rm -rf .venv .venv.lock .venv.log build dist projects/*.egg-info projects/refseg/.mim
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find projects tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +

env-key: python-found
	@"$(PYTHON)" tools/dev/setup_env.py --print-key

python-found:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer was found on the PATH. Install one (Debian and Ubuntu:" \
	  "apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
