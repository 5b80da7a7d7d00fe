"""The book as one graph: train what a budget asks for, score it, execute each notebook, build the book.

    snakemake --profile profiles/local --cores all      (`make book` does this, in its own environment)
    snakemake --profile profiles/slurm --config budget=short train=DF2K papers="safmn ssiu" seeds=3

Interrupted, it goes on where it stopped; an edit reruns what depends on it: a notebook depends on the modules that it
imports, on those that these import, and on their data.
"""

import fcntl
import os
import shlex
import sys
from functools import cache
from glob import glob
from pathlib import Path

from srlib import datasets, errors

sys.path.append("notebooks")
import depends

# Each by --config, or by the environment (SRLIB_BUDGET), from which jobs read it.
USUAL = {
    "budget": "recorded",  # pages show recorded runs and the weights that ship; smoke, short and paper train anew
    "train": "photos/train",  # the images to train on: a dataset or a folder
    "papers": "all",  # whose networks are trained: "safmn ssiu"
    "tables": "all",  # of which tables: "safmn-3 ssiu-4"; "none" trains only the networks that pages name
    "seeds": "1",  # trainings of each network
    "gpus": "1",  # of a training: as many processes, started by torchrun
    "steps": "",  # of a training, in place of the budget's; pages then show recorded runs
}
MINUTES = {"recorded": 30, "smoke": 60, "short": 240, "paper": 1440}  # of a job, or a cell; a training is then resumed


def setting(name):
    """A setting as it was typed: no YAML, no shell and no formatting may rewrite it."""
    variable = f"SRLIB_{name.upper()}"
    if name in config and workflow.is_main_process:
        typed = [word for word in sys.argv if word.startswith(f"{name}=")]
        if typed and typed[-1] != f"{name}={config[name]}":
            sys.exit(f"--config reads {typed[-1]!r} as {config[name]!r}: set {variable} in the environment instead")
        os.environ[variable] = str(config[name])
    return os.environ.setdefault(variable, USUAL[name])


if unknown := set(config) - set(USUAL):
    sys.exit(f"unknown setting {', '.join(unknown)}: --config takes {', '.join(USUAL)}")
BUDGET, TRAIN, PAPERS, TABLES, SEEDS, GPUS, STEPS = map(setting, USUAL)
SETTINGS = [TRAIN, STEPS, os.environ.get("SRLIB_DATA", "")]
if BUDGET not in MINUTES:
    sys.exit(f"unknown budget {BUDGET!r}: choose one of {', '.join(MINUTES)}, as in `make book BUDGET=short`")
for name, text in {"seeds": SEEDS, "gpus": GPUS, "steps": STEPS or "1"}.items():
    if not text.isdecimal() or int(text) == 0:
        sys.exit(f"{name} is {text!r}: give a whole number from 1 up")

PYTHON = shlex.quote(sys.executable)
JUPYTER_BOOK = shlex.quote(str(Path(sys.executable).with_name("jupyter-book")))
TRAINED = f".cache/trained/{BUDGET}"
NOTEBOOKS = [path.removesuffix(".ipynb") for path in glob("**/*.ipynb", root_dir="notebooks", recursive=True)]
CODE = {name: depends.code(Path(f"notebooks/{name}.ipynb")) for name in NOTEBOOKS}
# Pages that show trainings of the budget; the others show recorded runs.
ANEW = {name for name, code in CODE.items() if depends.anew(name, code, PAPERS, TABLES)}
ANEW = set() if BUDGET == "recorded" or STEPS else ANEW
TIMING = [name for name, code in CODE.items() if depends.TIMING.search(code)]


@cache
def runs():
    """The record of each training that pages, papers and tables ask for, and what it is."""
    if BUDGET == "recorded":
        return {}
    import trainings  # here, as torch takes seconds

    shown = set().union(*(depends.networks(CODE[name]) for name in ANEW))
    chosen = trainings.chosen(BUDGET, PAPERS, TABLES, int(STEPS) if STEPS else None, shown).itertuples()
    return {f"{TRAINED}/{one.run}/seed{i}.json": one for one in chosen for i in range(int(SEEDS) if one.row else 1)}


def trained(wildcards):
    """The records of the networks that a notebook shows, and of its paper's rows where it shows a table of these."""
    if wildcards.notebook not in ANEW:
        return []
    code, paper = CODE[wildcards.notebook], wildcards.notebook.split("/")[0]
    rows = [path for path, one in runs().items() if one.row and one.paper == paper and depends.TABLE.search(code)]
    return [f"{TRAINED}/{one}/seed0.json" for one in sorted(depends.networks(code))] + rows


def command(wildcards):
    """What trains a run: a model at a scale ("x4", or "any"), or a row of a table by its slug; on several GPUs by
    torchrun."""
    several = f"torch.distributed.run --standalone --nproc-per-node {GPUS} -m " if GPUS != "1" else ""
    which = f"--table {wildcards.table} --row {wildcards.row}"
    if wildcards.table == "main":
        which = "" if wildcards.row == "any" else f"--scale {wildcards.row[1:]}"
    return f"{several}srlib train {wildcards.model} {which}" + (f" --steps {STEPS}" if STEPS else "")


try:
    datasets.find(TRAIN)
    left = [one for path, one in runs().items() if not Path(path).exists()] if workflow.is_main_process else []
    if uneven := sorted({one.batch for one in left if one.batch % int(GPUS)}):
        sys.exit(f"gpus is {GPUS}: batches of {', '.join(map(str, uneven))} have no {GPUS} equal parts")
    if left:
        import trainings

        print(trainings.summary(left), file=sys.stderr)
except errors.InputError as error:
    sys.exit(str(error))


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
        [path for pattern in ("*.*", "api/*", "_*/*.*") for path in glob(f"book/{pattern}")],
        glob("srlib/**/*.py", recursive=True),
        "_config.yml",
        lambda wildcards: [path.removesuffix("json") + "csv" for path, one in runs().items() if one.row],
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
        lambda wildcards: depends.files(depends.imported(CODE[wildcards.notebook])),
        trained,
        notebook="notebooks/{notebook}.ipynb",
    output:
        "book/chapters/{notebook}.ipynb",
    params:
        budget=lambda wildcards: BUDGET if wildcards.notebook in ANEW else "recorded",
        settings=lambda wildcards: SETTINGS,  # a function, as Snakemake would read braces in a text
    resources: gpu=lambda wildcards: int(wildcards.notebook in ANEW), mem_mb=8000, runtime=MINUTES[BUDGET]
    retries: 0  # of a profile's: an error in a notebook comes again
    shell:
        "SRLIB_BUDGET={params.budget} "
        f"{{PYTHON}} notebooks/run.py {{input.notebook:q}} {{output:q}} {60 * MINUTES[BUDGET]}"


use rule notebook as timing with:  # pages that measure time: profiles keep others away from them
    wildcard_constraints:
        notebook="|".join(TIMING) or "(?!)",


ruleorder: timing > notebook


rule train:
    input:
        depends.code_files("srlib.runs"),
    output:
        TRAINED + "/{model}/{table}/{row}/seed{seed}.json",
    params:
        command=command,
        settings=lambda wildcards: SETTINGS,
    threads: 4 * int(GPUS)
    resources: gpu=int(GPUS), mem_mb=16000 * int(GPUS), runtime=MINUTES[BUDGET]
    shell:
        "echo training {wildcards.model}, {wildcards.row}, seed {wildcards.seed}, budget {BUDGET} && "
        "{PYTHON} -m {params.command} --seed {wildcards.seed} --budget {BUDGET} "
        '--data "$SRLIB_TRAIN" --record {output:q}'


rule score:
    input:
        depends.code_files("srlib.evaluate"),
        record=TRAINED + "/{run}.json",
    output:
        TRAINED + "/{run}.csv",
    resources: gpu=1, mem_mb=8000, runtime=60
    retries: 0  # of a profile's: an image that cannot be read stays so
    shell:
        "{PYTHON} -m srlib evaluate --record {input.record:q} --csv >{output:q}"
