"""The whole reproduction as one graph: train -> evaluate -> run each notebook -> build the book.

    snakemake --cores all --config budget=smoke train=photos/train      (`make book` does this, in its own environment)

Budgets: smoke (minutes on two CPU cores), short, paper. The networks are trained on the photographs inside scikit-image
or on the folder of images that `train` names; the paper budget needs the paper's. Interrupted, it goes on where it
stopped; after an edit it runs what depends on it: a page of prose rebuilds the book, a notebook is run again by itself,
a change in srlib runs everything again, and the trained runs are then loaded, not trained, unless the change touches
what determines their weights.
"""

import fcntl
import os
import shlex
import sys
from pathlib import Path

from snakemake.logging import logger

from srlib.papers import KEPT, slug

BUDGETS = {"smoke": 900, "short": 7200, "paper": 86400}  # seconds that a notebook may take, unless --config timeout=...

# The trained networks that a notebook loads: a model's main one, or a row of an ablation table by its printed label.
# The main ones are scored as well; "real-world" goes on from one; "x2" and "x3" are a model at that scale, trained as
# long as a row. A notebook that is not named here loads none; moeisr/4-experts trains its small networks itself, and
# those in trained/ read runs that are kept in book/results.
MAIN = ("safmn", None, "main")
PLAIN = ("safmn", 3, "Baseline")
FIGURE7 = ("LN -> None, lr=1x10^-3 *", "LN -> None, lr=1x10^-4", "LN -> BN", "LN -> FBN*", "LN -> L2 normalization")
TINY = ("seemore-t", None, "main")
SSIU = ("ssiu", None, "main")
MOEISR = ("moeisr-lte-s-edsr", None, "main")
KERNELS = [("seemore-t", "4c", f"SeemoRe-T (kernel={kernel})") for kernel in (11, 3)]
SELECTED = [("ssiu", 3, f"SSIU (ESAM=1;SAM=0;MoE-FS={moe_fs})") for moe_fs in (0, 1)]
AT_OTHER_SCALES = [(model, None, scale) for model in ("safmn", "seemore-t", "ssiu") for scale in ("x2", "x3")]
EVERY_SCALE = {"moeisr-lte-s-edsr"}
COMPARED = [MAIN, TINY, SSIU, MOEISR]
ROWS = {
    "safmn/2-training": [MAIN],
    "safmn/4-ablations": [PLAIN, ("safmn", 3, "CCM -> Channel MLP")],
    "safmn/5-inside": [MAIN, PLAIN, *(("safmn", 3, label) for label in FIGURE7)],
    "safmn/7-attribution": [MAIN, TINY, SSIU, MOEISR],
    "seemore/2-training": [TINY],
    "seemore/3-tables": [TINY],
    "seemore/4-ablations": KERNELS,
    "seemore/5-inside": [TINY],
    "seemore/7-real-world": [TINY, ("seemore-t", None, "real-world")],
    "ssiu/2-training": [SSIU],
    "ssiu/4-ablations": SELECTED,
    "ssiu/5-inside": [SSIU],
    "ssiu/7-audit": [MAIN, TINY, SSIU, *AT_OTHER_SCALES],
    "ssiu/8-attribution": [MAIN, TINY, SSIU, MOEISR],
    "moeisr/2-training": [MOEISR],
    "moeisr/3-tables": [MOEISR],
    "moeisr/4-experts": [MOEISR],
    "moeisr/5-zoom": [MOEISR],
    "compare/1-scores": COMPARED,
    "compare/2-pictures": COMPARED,
    "compare/3-cost": COMPARED,
    "compare/4-explore": [*COMPARED, *AT_OTHER_SCALES],
    "engine/2-tiles": COMPARED,
    **{f"compare/{photograph}": COMPARED for photograph in ("camera", "chelsea", "coffee", "rocket")},
}
# Notebooks that measure time, and so must have the machine to themselves.
TIMED = {"safmn/3-tables", "safmn/4-ablations", "safmn/6-speed"}
TIMED |= {"seemore/1-walkthrough", "seemore/3-tables", "seemore/6-speed"}
TIMED |= {"ssiu/3-tables", "ssiu/6-speed", "moeisr/6-speed", "compare/3-cost", "engine/1-loop"}

BUDGET = str(config.get("budget", "smoke"))
if BUDGET not in BUDGETS:
    sys.exit(f"unknown budget {BUDGET!r}: choose one of {', '.join(BUDGETS)}, as in `make book BUDGET=short`")
TRAIN = str(config.get("train") or "photos/train")  # the photographs, or a folder of images, also below SRLIB_DATA
DATA = os.environ.get("SRLIB_DATA", "")  # another data folder, or none, gives other results
if TRAIN == "photos/train":
    if BUDGET == "paper":
        sys.exit(
            "budget paper: give the folder of DIV2K's and Flickr2K's HR images: make book BUDGET=paper TRAIN=FOLDER"
        )
elif not any((Path(base).expanduser() / Path(TRAIN).expanduser()).is_dir() for base in (".", DATA)):
    sys.exit(f"no folder {TRAIN} to train on: name a folder of images, as in `make book BUDGET=short TRAIN=FOLDER`")
TIMEOUT = float(config.get("timeout", BUDGETS[BUDGET]))

PYTHON = shlex.quote(sys.executable)
JUPYTER_BOOK = shlex.quote(str(Path(sys.executable).with_name("jupyter-book")))
CORES = workflow.cores or 2  # on a cluster: what a job asks for
RECORDS = ".cache/records"
TABLES = f"{RECORDS}/tables/index.json"
TRAINED = {(model, slug(label)): (table, label) for rows in ROWS.values() for model, table, label in rows}


def files(folder, *patterns):
    """The files below a folder, those that are made or hidden left out."""
    made = ("book/_build/", "book/chapters/")
    found = sorted(str(path) for pattern in patterns for path in Path(folder).rglob(pattern) if path.is_file())
    return [path for path in found if "/." not in path and "__pycache__" not in path and not path.startswith(made)]


SOURCES = files("srlib", "*.py", "*.csv")
NOTEBOOKS = [path.removeprefix("notebooks/").removesuffix(".ipynb") for path in files("notebooks", "*.ipynb")]
PROSE = files("book", "*")
KEPT_RUNS = [path for folder in KEPT for path in files(f"book/results/{folder}", "*.json", "*.csv")]
SCORES = [path for path in files("book/results", "*.json") if path not in KEPT_RUNS]
WEIGHTS = files("srlib/weights", "*.safetensors")


def records(wildcards):
    """The records of the trained networks that a notebook loads."""
    return [
        f"{RECORDS}/{BUDGET}/{model}/{slug(label)}{'.eval' if label == 'main' else ''}.json"
        for model, table, label in ROWS.get(wildcards.notebook, [])
    ]


def kept(wildcards):
    """The runs that are kept and the weights that ship, which the pages on them read and no others."""
    return [*KEPT_RUNS, *WEIGHTS] if wildcards.notebook.startswith("trained/") else []


def made_runs():
    """The records of all trained networks that the notebooks load: the book has a page for each."""
    loaded = {(model, label) for name in NOTEBOOKS for model, table, label in ROWS.get(name, [])}
    return [f"{RECORDS}/{BUDGET}/{model}/{slug(label)}.json" for model, label in sorted(loaded)]


def which(wildcards):
    """The options of `srlib train` that name the network of a record."""
    table, label = TRAINED[wildcards.model, wildcards.row]
    if label in ("x2", "x3"):
        return f"--scale {label[1]} --ablation"
    return "" if table is None else f"--table {table} --row {shlex.quote(label)}"


# A line for each step of the scheduler's says nothing that the jobs' own lines do not.
logger.addFilter(lambda record: not str(record.msg).startswith(("Select jobs", "Execute ")))


# Snakemake's own lock outlives a killed run and then blocks the next, so it is run with --nolock. This one is the system's:
# it keeps a second run out while the first one lives, and is gone with it however it ends.
onstart:
    global LOCK
    os.makedirs(".snakemake", exist_ok=True)
    LOCK = open(".snakemake/running", "w")
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("another run is at work in this folder: wait for it to end, or stop it, and start again")


wildcard_constraints:
    notebook=".+",
    model="[^/.]+",
    row="[^/.]+",


rule book:
    input:
        expand("book/chapters/{notebook}.ipynb", notebook=NOTEBOOKS),
        "_config.yml",
        "book/_toc.yml",
        PROSE,
        SOURCES,
        TABLES,
        made_runs(),
    output:
        "book/_build/html/index.html",
    log:
        ".cache/book.log",
    shell:
        # from scratch, as a build over an older one is silent about the warnings of pages that it does not read again
        "rm -rf book/_build && echo building the book && "
        "{JUPYTER_BOOK} build --path-output book --config _config.yml -W -n --keep-going book >{log} 2>&1 || "
        "{{ grep -E 'WARNING|ERROR|Error:' {log} >&2; echo 'the book could not be built: {log} holds the rest' >&2; exit 1; }}"


rule tables:
    input:
        SOURCES,
        SCORES,
    output:
        TABLES,
    shell:
        "echo writing the records of all printed tables && "
        "OMP_NUM_THREADS={threads} {PYTHON} -m srlib tables {RECORDS}/tables --records book/results >/dev/null"


rule notebook:
    input:
        "notebooks/run.py",
        SOURCES,
        SCORES,
        records,
        kept,
        notebook="notebooks/{notebook}.ipynb",
    output:
        "book/chapters/{notebook}.ipynb",
    params:
        budget=BUDGET,
        train=TRAIN,
        data=DATA,
    threads: lambda wildcards: CORES if wildcards.notebook in TIMED else 1
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON} notebooks/run.py {input.notebook:q} {output:q} --timeout {TIMEOUT} "
        "--offer budget {params.budget} --offer train_data {params.train:q}"


rule evaluate:
    input:
        SOURCES,
        record=f"{RECORDS}/{BUDGET}/{{model}}/{{row}}.json",
    output:
        f"{RECORDS}/{BUDGET}/{{model}}/{{row}}.eval.json",
    params:
        data=DATA,
        # a network for every scale is scored at five: on Set14 that takes longer than its smoke run does
        sets=lambda wildcards: "--data photos/held-out" if BUDGET == "smoke" and wildcards.model in EVERY_SCALE else "",
    threads: min(CORES, 2)
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON} -m srlib evaluate --record {input.record:q} {params.sets} --out {output:q}"


rule train:
    input:
        SOURCES,
    output:
        f"{RECORDS}/{BUDGET}/{{model}}/{{row}}.json",
    params:
        which=which,
        budget=BUDGET,
        train=TRAIN,
    # short runs of small batches gain more from a neighbour than from a second thread
    threads: lambda wildcards: 1 if BUDGET == "smoke" and which(wildcards) else CORES
    shell:
        "echo training {wildcards.model:q}, {wildcards.row:q}, budget {params.budget} && "
        "OMP_NUM_THREADS={threads} {PYTHON} -m srlib train {wildcards.model:q} {params.which} --budget {params.budget} "
        "--data {params.train:q} --record {output:q}"


ruleorder: fine_tune > train


rule fine_tune:
    input:
        SOURCES,
        start=f"{RECORDS}/{BUDGET}/{{model}}/main.json",
    output:
        f"{RECORDS}/{BUDGET}/{{model}}/real-world.json",
    params:
        budget=BUDGET,
        train=TRAIN,
    threads: CORES
    shell:
        "echo fine-tuning {wildcards.model:q} for real-world images, budget {params.budget} && "
        "OMP_NUM_THREADS={threads} {PYTHON} -m srlib train {wildcards.model:q} --fine-tune {input.start:q} "
        "--budget {params.budget} --data {params.train:q} --record {output:q}"
