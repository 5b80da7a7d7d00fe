"""The workflow's graph, what an edit reruns, and the notebook runner."""

import fcntl
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srlib import errors, papers

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra: pip install -e .[book]")
pytest.importorskip("nbclient", reason="the notebooks need the extra: pip install -e .[book]")
pytest.importorskip("snakemake", reason="the workflow needs the extra: pip install -e .[book]")

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "notebooks"))
import trainings  # noqa: E402

PAGES = {  # notebook -> what it imports
    "resize": "from srlib.resize import imresize",
    "safmn/pictures": "from srlib import (\n    errors,\n    viz,\n)",
    "safmn/rows": 'table = "4"\nfrom srlib import errors',
    "safmn/training": "from srlib import results\nresults.trained('safmn', 4, budget)",
    "speed": "from srlib import complexity\ncomplexity.latency(print)",
    "ssiu/audit": "from srlib.results import trained\ntrained('ssiu', 4, budget)\ntrained('lte-edsr', None, budget)",
}
SHOWN = {"safmn/training", "ssiu/audit"}
AWKWARD = ["0123", "2024_01", "[a] x{1} o'brien", 'a: b #1 "c" $HOME 100%']


def notebook(path: Path, *texts: str) -> Path:
    """Write a notebook of a title, the parameters and these code cells."""
    code = [nbformat.v4.new_code_cell(cell) for cell in ('budget = "recorded"\ntrain_data = "photos/train"', *texts)]
    code[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_markdown_cell("# Title"), *code]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Execute a notebook as the workflow does."""
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=ROOT, env=os.environ | environment)


def printed(path: Path) -> str:
    """All that a notebook's code cells printed."""
    outputs = [out for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" for out in cell.outputs]
    return "".join(out.get("text", "") for out in outputs)


def test_a_notebook_runs_without_anything_of_the_users(tmp_path: Path) -> None:
    """This Python in the project's folder; no kernel, profile, history or matplotlib setting of the user's."""
    home = tmp_path / "home"
    kernel = home / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "no", "language": "python"}))
    startup = home / "ipython" / "profile_default" / "startup" / "own.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("print('from the startup file')")
    (home / "matplotlibrc").write_text("text.usetex: True\n")
    told = "import json, os, sys; import matplotlib; "
    told += "print(json.dumps([sys.executable, os.getcwd(), matplotlib.rcParams['text.usetex'], budget, train_data]))"
    page, out = notebook(tmp_path / "in.ipynb", told), tmp_path / "deep" / "out.ipynb"
    users = {"HOME": home, "JUPYTER_PATH": home / "jupyter", "IPYTHONDIR": home / "ipython", "MPLBACKEND": "Agg"}
    users |= {"MATPLOTLIBRC": home / "matplotlibrc", "SRLIB_TRAIN": AWKWARD[2]}
    done = run(page, out, SRLIB_BUDGET="smoke", **{name: str(value) for name, value in users.items()})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(printed(out)) == [sys.executable, str(ROOT), False, "smoke", AWKWARD[2]]
    assert [path.name for path in out.parent.iterdir()] == ["out.ipynb"]


def test_a_failing_notebook_leaves_the_result_alone_and_what_ran_beside_it(tmp_path: Path) -> None:
    page, out = notebook(tmp_path / "in.ipynb", "print('so far')", "1 / 0", "print('never')"), tmp_path / "out.ipynb"
    out.write_text("older result")
    done = run(page, out)
    assert done.returncode == 1 and "in.ipynb: ZeroDivisionError: division by zero" in done.stderr
    assert out.read_text() == "older result" and printed(tmp_path / "out.failed.ipynb") == "so far\n"


def test_a_cell_that_takes_too_long_ends_the_notebook(tmp_path: Path) -> None:
    page = notebook(tmp_path / "in.ipynb", "import time; time.sleep(60)")
    done = run(page, tmp_path / "out.ipynb", 2)
    assert done.returncode == 1 and "after 2 seconds" in done.stderr
    assert not (tmp_path / "out.ipynb").exists()


def snakemake(
    folder: Path, *options: str, target: str = "book", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder, as the Makefile does."""
    profile = () if "--profile" in options else ("--profile", "profiles/local", "--cores", "2")
    command = [sys.executable, "-m", "snakemake", target, *profile, *options]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SRLIB_")}
    environment = clean | {"SRLIB_TABLES": "none"} | {"XDG_CACHE_HOME": str(folder / "cache")} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=folder, env=environment)


def dry_run(folder: Path, *options: str, target: str = "book", **environment: str) -> str:
    """All that Snakemake says of the jobs that it would start."""
    done = snakemake(folder, "--dry-run", *options, "--quiet", "host", target=target, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def planned(folder: Path, **environment: str) -> set[str]:
    """What would be made, pages by their names."""
    return outputs(dry_run(folder, **environment))


def outputs(said: str) -> set[str]:
    """What a dry run says would be made, pages by their names."""
    made = re.findall(r"^ +output: (.+)$", said, re.M)
    return {path.removeprefix("book/chapters/").removesuffix(".ipynb") for path in made}


BOOK = "book/_build/html/index.html"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the real Snakefile and library, in a folder with an awkward name, all made."""
    folder = tmp_path_factory.mktemp("project") / "it's {a} project"
    copied = ["Snakefile", "_config.yml", "profiles/local/config.yaml", "profiles/slurm/config.yaml"]
    for name in (*copied, *(f"notebooks/{name}.py" for name in ("run", "depends", "trainings"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "srlib", folder / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "book" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "book" / "results" / "runs.csv", folder / "book" / "results")
    (folder / "book" / "intro.md").write_text("# Intro\n")
    for name, code in PAGES.items():
        notebook(folder / "notebooks" / f"{name}.ipynb", code)
    for name in (BOOK, *(f"book/chapters/{page}.ipynb" for page in PAGES)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    done = snakemake(folder, "--touch", "--forceall")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def depends(project: Path) -> Iterator[Any]:
    """notebooks/depends.py, which looks at the library of the folder that it is imported in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        yield importlib.import_module("depends")


@pytest.mark.parametrize(
    ("edited", "pages"),
    [
        ("srlib/viz.py", {"safmn/pictures"}),
        ("srlib/models/ssiu.py", SHOWN),
        ("book/results/runs.csv", SHOWN),
        ("srlib/weights/safmn-x4.safetensors", SHOWN),
        ("srlib/errors.py", {*PAGES} - {"speed"}),
    ],
)
def test_a_page_depends_on_what_its_modules_read(
    project: Path, depends: Any, edited: str, pages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page on resizing does not depend on models, evidence or drawing."""
    monkeypatch.chdir(project)
    found = {name for name, code in PAGES.items() if edited in depends.files(depends.imported(code))}
    assert pages <= found and ("resize" in found) == ("resize" in pages)


@pytest.mark.parametrize(
    ("edited", "reruns"),
    [
        ((), set()),
        (("srlib/cli.py", "notebooks/resize.ipynb"), {BOOK, "resize"}),
        (("book/results/runs.csv",), {BOOK, *SHOWN}),
    ],
)
def test_an_edit_reruns_the_pages_that_depend_on_it_and_the_book(
    project: Path, edited: tuple[str, ...], reruns: set[str]
) -> None:
    before = {path: (path.read_bytes(), path.stat()) for path in (project / name for name in edited)}
    try:
        for path, (whole, _) in before.items():
            path.write_bytes(whole + b"\n")  # Snakemake reads it: a file that is only newer is not edited
        assert planned(project) == reruns
    finally:
        for path, (whole, times) in before.items():
            path.write_bytes(whole)
            os.utime(path, (times.st_atime, times.st_mtime))


def needs(folder: Path, *options: str, **environment: str) -> dict[str, str]:
    """What each job asks for, by its output: its rule, threads and resources."""
    found = re.split(r"^(?:local)?rule ", dry_run(folder, *options, **environment), flags=re.M)[1:]
    made = [re.search(r"^ +output: (.+)$", job, re.M) for job in found]
    return {output[1]: job for output, job in zip(made, found, strict=True) if output}


def test_jobs_ask_for_what_they_need(project: Path) -> None:
    """On one machine a page that measures time, and a training, run alone; Slurm gives the one a node, the other a GPU,
    and a training as many as it has processes. No printed claim, table or ledger decides a training's weights."""
    run = ".cache/trained/short/safmn/main/x4/seed0.json"
    local = needs(project, "--forceall", SRLIB_BUDGET="short", SRLIB_PAPERS="safmn")
    alone = {output for output, job in local.items() if "threads: 2" in job}
    assert alone == {run, "book/chapters/speed.ipynb"}
    assert set(re.findall(r"data/(\w+)\.csv", local[run])) == {f"{slug}_rows" for slug in papers.all_papers()}
    on_slurm = ("--profile", "profiles/slurm", "--cores", "16")
    slurm = needs(project, "--forceall", *on_slurm, SRLIB_BUDGET="short", SRLIB_GPUS="2")
    assert {page for page, job in slurm.items() if "--exclusive" in job} == {"book/chapters/speed.ipynb"}
    assert all(need in slurm[run] for need in ("gpu=2", "threads: 8", "mem_mb=32000", "runtime=240"))
    assert {page for page, job in slurm.items() if "gpu=1" in job} == {f"book/chapters/{page}.ipynb" for page in SHOWN}


def test_another_budget_trains_what_pages_name_and_reruns_these(project: Path) -> None:
    shown = ("safmn/main/x4", "ssiu/main/x4", "lte-edsr/main/any")
    named = {f".cache/trained/smoke/{run}/seed0.json" for run in shown}
    commands = dry_run(project, "--printshellcmds", SRLIB_BUDGET="smoke")
    assert outputs(commands) == {BOOK, *SHOWN, *named}
    assert "trainings left: 3" in commands and "srlib train lte-edsr  --seed 0" in commands
    assert re.search(r'srlib train safmn --scale 4 --seed 0 --budget smoke --data "\$SRLIB_TRAIN"', commands)


def test_the_graph_holds_each_own_row_once_and_says_how_long_it_takes(project: Path, depends: Any) -> None:
    """A network that several tables print is trained once; papers and tables cut the graph, seeds repeat it. A page of
    which they hold a part only shows recorded runs, and with fewer steps all pages do."""
    options = ("--printshellcmds", "--config", "budget=short", "papers=safmn", "tables=safmn-1 safmn-4", "seeds=2")
    said = dry_run(project, *options)
    anew = r"SRLIB_BUDGET=short .*run.py notebooks/(\S+)\.ipynb"
    assert set(re.findall(anew, said)) == {"safmn/rows", "safmn/training"}
    assert re.search(r"safmn/4/n-4/seed0.json.*\n +output: book/chapters/safmn/rows", said), "rows come first"
    assert "srlib train safmn --table 4 --row n-4 --seed 1" in said
    assert not re.search(anew, dry_run(project, *options, "steps=20"))
    assert not depends.anew("safmn/rows", PAGES["safmn/rows"], "safmn", "safmn-1")
    made = set(re.findall(r"output: .cache/trained/short/(\S+)\.json", said))
    rows = {f"safmn/main/x{scale}" for scale in (2, 3, 4)} | {f"safmn/4/n-{blocks}" for blocks in (4, 6, 8, 12)}
    assert made == {f"{row}/seed{seed}" for row in rows for seed in (0, 1)}
    assert len(re.findall(r"output: .cache/trained/short/\S+\.csv", said)) == len(made)
    assert "trainings left: 14" in said and re.search(r"safmn: 14, of which 14 should take [\d.]+ hours", said)
    models = set(trainings.chosen("paper", "all", "all", None).model)
    assert {"safmn", "seemore-l", "ssiu", "moeisr-lte-b-swinir"} <= models
    assert len(trainings.chosen("smoke", "moeisr", "moeisr-mapper", None)) == 7, "a table of our own"
    with pytest.raises(errors.InputError, match="unknown: safmn-9; choose some of safmn-1"):
        trainings.chosen("paper", "all", "safmn-9", None)
    done = snakemake(project, *options, "gpus=3")
    assert done.returncode != 0 and "gpus is 3: batches of 32 have no 3 equal parts" in done.stderr


def test_make_hands_settings_on_as_they_are(tmp_path: Path) -> None:
    settings = re.findall(r"^\w+ +\?= .*|^export SRLIB_\w+ +:= .*", (ROOT / "Makefile").read_text(), re.M)
    show = 'show:\n\t@printf "%s, " "$$SRLIB_TRAIN" "$$SRLIB_PAPERS" "$$SRLIB_TABLES" "$$SRLIB_SEEDS"\n'
    (tmp_path / "Makefile").write_text("\n".join([*settings, show]))
    for name in AWKWARD:
        command = ["make", "-s", "-C", tmp_path, "show", f"TRAIN={name}", "PAPERS=safmn ssiu", "SEEDS=3"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.stdout == f"{name}, safmn ssiu, none, 3, "


@pytest.mark.parametrize(
    ("setting", "mend"),
    [
        ("budget=huge", "unknown budget 'huge': choose one of recorded, smoke, short, paper"),
        ("train=o'brien", 'no images called "o\'brien"'),
        ("train=0123", "set SRLIB_TRAIN in the environment instead"),  # YAML would rewrite it
        ("train=a #b", "set SRLIB_TRAIN in the environment instead"),
        ("bugdet=short", "unknown setting bugdet: --config takes budget, train"),
        ("seeds=three", "seeds is 'three': give a whole number from 1 up"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(project: Path, setting: str, mend: str) -> None:
    """After the one in which Snakemake names its profile."""
    done = snakemake(project, "--config", setting)
    assert done.returncode != 0 and mend in done.stderr and len(done.stderr.splitlines()) == 2, done.stderr


def test_the_graph_needs_no_torch_and_no_number_of_cores(project: Path, tmp_path: Path) -> None:
    """It is read anew for every job, and on a cluster by a process without ``--cores``."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch takes seconds')")
    assert planned(project, PYTHONPATH=str(tmp_path)) == set()
    assert "workflow.cores" not in (ROOT / "Snakefile").read_text()


def test_a_second_run_at_once_is_refused_and_a_killed_one_blocks_nothing(project: Path) -> None:
    with (project / ".snakemake" / "running").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = snakemake(project, "--forceall", "--until", "notebook")
        assert done.returncode != 0 and "another run is at work" in done.stderr
    (project / ".snakemake" / "locks").mkdir(exist_ok=True)
    (project / ".snakemake" / "locks" / "0.output.lock").write_text(f"{BOOK}\n")
    assert planned(project) == set(), "the lock is gone with its owner"
