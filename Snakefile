"""The book as one graph: train what a budget asks for, execute each notebook, build the book.

    snakemake book --profile profiles/local --cores all       (`make book` does this, in its own environment)

SRLIB_BUDGET is the budget: recorded (the default: pages show recorded runs and the weights that ship), smoke, short or
paper, which train anew. SRLIB_TRAIN is the folder of images to train on. Jobs read both from the environment, so that
no shell and no YAML reads the name of a folder. Interrupted, it goes on where it stopped; an edit reruns what depends
on it: a notebook depends on the modules that it imports, on those that these import, and on their data.
"""

import fcntl
import os
import shlex
import sys
from pathlib import Path

from srlib import datasets, errors

sys.path.append("notebooks")
import depends

TIMEOUT = {"recorded": 900, "smoke": 1800, "short": 14400, "paper": 604800}  # seconds that a notebook may take
BUDGET = os.environ.setdefault("SRLIB_BUDGET", "recorded")
SETTINGS = [os.environ.setdefault(name, usual) for name, usual in (("SRLIB_TRAIN", "photos/train"), ("SRLIB_DATA", ""))]
if BUDGET not in TIMEOUT:
    sys.exit(f"unknown budget {BUDGET!r}: choose one of {', '.join(TIMEOUT)}, as in `make book BUDGET=short`")
try:
    datasets.find(SETTINGS[0])
except errors.InputError as error:
    sys.exit(str(error))

PYTHON = shlex.quote(sys.executable)
JUPYTER_BOOK = shlex.quote(str(Path(sys.executable).with_name("jupyter-book")))
ALL_CORES = 64  # more than `--cores` gives, which then is the number: the job runs alone
DEPENDENCIES = depends.Dependencies()


def below(folder, *patterns):
    """The files below a folder, those that are made or hidden left out."""
    found = (str(path) for pattern in patterns for path in Path(folder).rglob(pattern) if path.is_file())
    made = ("book/_build/", "book/chapters/", "book/results/")
    return sorted(path for path in found if "/." not in path and "__pycache__" not in path and not path.startswith(made))


NOTEBOOKS = [path.removeprefix("notebooks/").removesuffix(".ipynb") for path in below("notebooks", "*.ipynb")]
CODE = {name: depends.code(Path(f"notebooks/{name}.ipynb")) for name in NOTEBOOKS}


def trained(wildcards):
    """The records of the networks that a notebook trains; none where it shows recorded ones."""
    networks = [] if BUDGET == "recorded" else depends.TRAINED.findall(CODE[wildcards.notebook])
    return [f".cache/trained/{BUDGET}/{model}/main/x{scale or 4}/seed0.json" for model, scale in networks]


def options(wildcards):
    """The options of `srlib train` that name a run: a row of a table by its slug, or a model at a scale ("x4")."""
    if wildcards.table != "main":
        return f"--table {wildcards.table} --row {wildcards.row}"
    return f"--scale {wildcards.row[1:]}"


# Snakemake's own lock outlives a killed run and then blocks the next. This one is the system's: it goes with its owner.
onstart:
    global LOCK
    LOCK = open(".snakemake/running", "w")
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("another run is at work in this folder: wait for it to end, or stop it, and start again")


rule book:
    input:
        expand("book/chapters/{notebook}.ipynb", notebook=NOTEBOOKS),
        "_config.yml",
        below("book", "*"),
        below("srlib", "*.py"),
    output:
        "book/_build/html/index.html",
    log:
        ".cache/book.log",
    shell:
        # from scratch, as a build over an older one is silent about the warnings of pages that it does not read again
        "rm -rf book/_build && echo building the book && "
        "{JUPYTER_BOOK} build --path-output book --config _config.yml -W -n --keep-going book "
        ">{log} 2>&1 || {{ grep -E 'WARNING|ERROR|Error:' {log} >&2; echo 'the book failed: see {log}' >&2; exit 1; }}"


rule notebook:
    input:
        "notebooks/run.py",
        lambda wildcards: DEPENDENCIES.files(DEPENDENCIES.imported(CODE[wildcards.notebook])),
        trained,
        notebook="notebooks/{notebook}.ipynb",
    output:
        "book/chapters/{notebook}.ipynb",
    params:
        budget=BUDGET,
        timeout=TIMEOUT[BUDGET],
        settings=lambda wildcards: SETTINGS,  # a function, as Snakemake would read braces in a text
    threads: lambda wildcards: ALL_CORES if depends.TIMING.search(CODE[wildcards.notebook]) else 1
    shell:
        "{PYTHON} notebooks/run.py {input.notebook:q} {output:q} "
        "--budget {params.budget} --timeout {params.timeout}"


rule train:
    input:
        DEPENDENCIES.files({"srlib.runs"}),
    output:
        ".cache/trained/{budget}/{model}/{table}/{row}/seed{seed}.json",
    params:
        options=options,
        settings=lambda wildcards: SETTINGS,
    threads: ALL_CORES
    shell:
        "echo training {wildcards.model}, {wildcards.row}, seed {wildcards.seed}, budget {wildcards.budget} && "
        "{PYTHON} -m srlib train {wildcards.model} {params.options} "
        '--seed {wildcards.seed} --budget {wildcards.budget} --data "$SRLIB_TRAIN" --record {output:q}'
