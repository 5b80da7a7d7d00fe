"""The notebook runner and the workflow's graph: what is refused, what is kept, what an edit runs again."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srlib import papers

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra: pip install -e .[book]")
pytest.importorskip("papermill", reason="the notebooks need the extra: pip install -e .[book]")
pytest.importorskip("snakemake", reason="the workflow needs the extra: pip install -e .[book]")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "notebooks" / "run.py"


def notebook(path: Path, *cells: str, tagged: bool = True) -> Path:
    """Write a notebook of a heading and these code cells, the first of them tagged parameters."""
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    if tagged:
        code[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), *code]), path)
    return path


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the notebook runner as the workflow does."""
    command = [sys.executable, str(RUNNER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=os.environ | environment)


def source(path: Path) -> str:
    """All that a notebook's code cells printed."""
    outputs = [out for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" for out in cell.outputs]
    return "".join(out.get("text", "") for out in outputs)


def test_notebook_runs_in_a_kernel_of_its_own(tmp_path: Path) -> None:
    """This Python, the project's folder, no history, no bars, nothing of the user's; parameters set; no path kept."""
    foreign = tmp_path / "home" / ".local" / "share" / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "no", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    told = "import os, sys, json; from IPython import get_ipython; print(json.dumps([sys.executable, os.getcwd(), "
    told += "get_ipython().history_manager.enabled, os.environ['IPYTHONDIR'], os.environ['SRLIB_PROGRESS'], "
    told += "budget, seed, scale]))"
    page = notebook(tmp_path / "in.ipynb", 'budget: str = "smoke"\nseed = 0\nscale = 4', told)
    out = tmp_path / "deep" / "out.ipynb"
    asked = ("-p", "seed", "7", "--offer", "budget", "short", "--offer", "colour", "red")
    home = str(tmp_path / "home")
    done = run(page, out, *asked, HOME=home, JUPYTER_PATH=str(foreign.parents[1]), IPYTHONDIR=f"{home}/.ipython")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("in.ipynb: 2 cells in ")
    executable, folder, history, ipython, progress, *values = json.loads(source(out))
    assert (executable, folder, history, progress) == (sys.executable, str(ROOT), False, "line")
    assert values == ["short", 7, 4]
    assert not Path(ipython).exists() and not (tmp_path / "home" / ".ipython").exists()
    result = nbformat.read(out, 4)
    nbformat.validate(result)
    made = result.metadata["srlib"]
    assert made["parameters"] == {"budget": "short", "seed": 7, "scale": 4} and made["given"] == ["budget", "seed"]
    assert made["changed"] == {"budget": "smoke", "seed": 0} and made["notebook"] == "in.ipynb"
    assert 0 < made["seconds"] < 90 and made["timeout"] == 900 and made["versions"]["python"].count(".") == 2
    assert (made["runs"], made["images"], made["scores"]) == ([], [], [])
    metadata = json.dumps([result.metadata, *(cell.metadata for cell in result.cells)])
    assert str(tmp_path) not in metadata and str(ROOT) not in metadata and "start_time" not in metadata
    (injected,) = [cell for cell in result.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "hide-input" in injected.metadata.tags
    assert [path.name for path in out.parent.iterdir()] == ["out.ipynb"]


def test_notebook_notes_what_it_read_and_what_computed(tmp_path: Path) -> None:
    """A run's files, image sets, score records; commit, device and threads once srlib has loaded torch."""
    pytest.importorskip("skimage")
    read = "scores = json.loads(next(Path('book/results').rglob('luma-x4.json')).read_text())"
    store = "store = Store.open(find('photos/held-out')); pair = store.pair(0, 4)"
    cells = ["import json; from pathlib import Path", read, f"from srlib.data import Store, find; {store}"]
    cells.append("import torch; torch.set_num_threads(1)\ntry: open('runs/some-run/config.json')\nexcept OSError: pass")
    page, out = notebook(tmp_path / "in.ipynb", *cells, tagged=False), tmp_path / "out.ipynb"
    for _ in range(2):  # the image set is built, and then found
        done = run(page, out, SRLIB_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1")
        assert (done.returncode, done.stderr) == (0, "")
        made = nbformat.read(out, 4).metadata["srlib"]
        assert made["runs"] == ["some-run"] and made["scores"] == ["bicubic/luma-x4.json"]
        [images] = made["images"]
        assert images["images"] == 4 and len(images["fingerprint"]) == len(images["lr"]["4"]) == 64
        assert made["threads"] == 1 and made["device"] and re.match(r"[0-9a-f]{12}|unknown", made["commit"])
        assert made["parameters"] == {} and str(tmp_path) not in json.dumps(made)


def test_folder_among_the_parameters_is_told_by_its_name(tmp_path: Path) -> None:
    """In the record, and in the notebook that one can download."""
    page = notebook(tmp_path / "in.ipynb", 'train_data = "photos/train"\nseed = 0', "print(len(train_data))")
    folder = str(tmp_path / "HR images")
    assert run(page, tmp_path / "out.ipynb", "-p", "train_data", folder, "-p", "seed", "1").returncode == 0
    assert source(tmp_path / "out.ipynb") == f"{len(folder)}\n", "the notebook itself was given the whole path"
    assert str(tmp_path) not in (tmp_path / "out.ipynb").read_text()
    result = nbformat.read(tmp_path / "out.ipynb", 4)
    (injected,) = [cell for cell in result.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    values: dict[str, Any] = {}
    exec(injected.source, values)
    assert (values["train_data"], values["seed"]) == ("\u2026/HR images", 1)
    made = result.metadata["srlib"]
    assert made["parameters"] == {"train_data": "\u2026/HR images", "seed": 1}
    assert made["changed"] == {"train_data": "photos/train", "seed": 0}


def test_commit_is_marked_where_the_notebook_or_the_scores_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another notebook's changes don't count; one that is in no commit does; what is unknown or marked stays so."""
    spec = importlib.util.spec_from_file_location("runner", RUNNER)
    assert spec and spec.loader
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    page, other = (notebook(tmp_path / "notebooks" / f"{name}.ipynb", "1") for name in ("page", "other"))
    scores = tmp_path / "book" / "results" / "a.json"
    scores.parent.mkdir(parents=True)
    scores.write_text("{}")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for words in (("init",), ("add", "."), (*who, "commit", "-m", "all")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    other.write_text(other.read_text() + "\n")
    assert runner.with_changes("abc", page) == "abc"
    assert runner.with_changes("abc", other) == "abc+changes"
    assert runner.with_changes("abc", notebook(tmp_path / "notebooks" / "new.ipynb", "1")) == "abc+changes"
    scores.write_text("[]")
    assert runner.with_changes("abc", page) == "abc+changes"
    assert [runner.with_changes(known, page) for known in ("unknown", "a+changes")] == ["unknown", "a+changes"]
    monkeypatch.setattr(runner, "ROOT", tmp_path.parent)
    assert runner.with_changes("abc", page) == "abc+changes", "where git can't tell"


@pytest.mark.parametrize(("asked", "told"), [("cuda", "a GPU"), ("cpu", "1 thread"), ("tpu", "a GPU"), ("", "a GPU")])
def test_device_of_a_record_is_the_pages(tmp_path: Path, asked: str, told: str) -> None:
    """Its parameter's where it has one, else the one that srlib chooses, which is a GPU where there is one."""
    there = "import torch, srlib\ntorch.cuda.is_available = lambda: True\n"
    there += "torch.cuda.get_device_name = lambda device: 'a GPU'"
    page = notebook(tmp_path / "in.ipynb", f"device = {asked!r}" if asked else "seed = 0", there)
    done = run(page, tmp_path / "out.ipynb", OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert told in nbformat.read(tmp_path / "out.ipynb", 4).metadata["srlib"]["device"]


def test_failing_notebook_is_reported_with_its_cell_and_kept(tmp_path: Path) -> None:
    page = notebook(tmp_path / "bad.ipynb", 'budget = "smoke"', "print('so far')", "x = 1\n\nx / 0", "print('never')")
    out = tmp_path / "out.ipynb"
    out.write_text("older result")
    done = run(page, out, "-p", "budget", "smoke")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "bad.ipynb failed in cell 4 (x = 1): ZeroDivisionError: division by zero" in lines[0]
    assert source(tmp_path / "out.failed.ipynb") == "so far\n"
    assert out.read_text() == "older result"


def test_limit_holds_for_the_notebook_as_a_whole(tmp_path: Path) -> None:
    """No cell alone reaches the limit; a later success takes the partly executed copy away."""
    page = notebook(tmp_path / "slow.ipynb", "import time; nap = 0.8", *["time.sleep(nap)"] * 6)
    out = tmp_path / "out.ipynb"
    done = run(page, out, "--timeout", "2")
    assert done.returncode == 1 and not out.exists()
    assert re.search(r"slow.ipynb failed in cell [2-5] \(.*\): stopped at the limit of 2 s", done.stderr)
    assert (tmp_path / "out.failed.ipynb").exists()
    assert run(page, out, "-p", "nap", "0").returncode == 0
    assert out.exists() and not (tmp_path / "out.failed.ipynb").exists()


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("ok", ["-p", "bugdet", "short"], "no parameter 'bugdet': its parameters are budget, seed"),
        ("bare", ["-p", "budget", "short"], "takes no parameters"),
        ("missing", [], "no notebook missing.ipynb"),
        ("text", [], "not a notebook"),
        ("ok", ["--timeout", "0"], "above 0"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, case: str, arguments: list[str], message: str) -> None:
    touched = tmp_path / "touched"
    cell = f"open({str(touched)!r}, 'w')"
    notebook(tmp_path / "ok.ipynb", 'budget = "smoke"\nseed = 0', cell)
    notebook(tmp_path / "bare.ipynb", cell, tagged=False)
    (tmp_path / "text.ipynb").write_text("no json")
    done = run(tmp_path / f"{case}.ipynb", tmp_path / "out.ipynb", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not touched.exists() and not list(tmp_path.glob("out*"))


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder, with the options that the Makefile gives it."""
    options = re.search(r"^SNAKEMAKE := (.*?) --quiet", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert options
    command = [sys.executable, "-m", "snakemake", "book", "--cores", "2", *options[1].split(), *arguments]
    environment = os.environ | {"SRLIB_DATA": "", "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=environment)


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """The rules that would run, with how often."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    table = re.search(r"^job +count\n-[- ]+\n(.*?)^total", done.stdout + done.stderr, re.MULTILINE | re.DOTALL)
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()} if table else {}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the real Snakefile and library, all made; one of its two notebooks loads a trained network."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("Snakefile", "_config.yml", "notebooks/run.py", "book/_toc.yml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "srlib", folder / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "book" / "intro.md").write_text("# Intro\n")
    for name in ("safmn/2-training", "other"):
        notebook(folder / "notebooks" / f"{name}.ipynb", 'budget = "smoke"')
    records = folder / ".cache" / "records" / "smoke" / "safmn"
    made = [records / "main.json", records / "main.eval.json", folder / "book/_build/html/index.html"]
    made += [folder / ".cache" / "records" / "tables" / "index.json"]
    made += [folder / f"book/chapters/{name}.ipynb" for name in ("safmn/2-training", "other")]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    done = snakemake(folder, "--touch")
    assert done.returncode == 0, done.stderr
    return folder


def edit(path: Path) -> None:
    """Change a file, later than all that was made from it."""
    path.write_text(path.read_text() + "\n")
    later = max(file.stat().st_mtime for file in path.parents[0].rglob("*") if file.is_file()) + 60
    os.utime(path, (later, later))


def test_an_edit_runs_what_depends_on_it(project: Path) -> None:
    """Nothing changed: nothing runs. Then a page, a notebook, and the library are edited, one after the other."""
    assert planned(project) == {}
    edit(project / "book" / "intro.md")
    assert planned(project) == {"book": 1}
    edit(project / "notebooks" / "other.ipynb")
    assert planned(project) == {"notebook": 1, "book": 1}
    edit(project / "srlib" / "errors.py")
    assert planned(project) == {"train": 1, "evaluate": 1, "tables": 1, "notebook": 2, "book": 1}


def test_a_score_record_fills_the_tables_again(project: Path) -> None:
    record = project / "book" / "results" / "bicubic.json"
    record.parent.mkdir()
    record.write_text("{}")
    assert {"tables", "book"} <= set(planned(project))
    record.unlink()
    record.parent.rmdir()


def test_a_kept_run_concerns_the_pages_on_kept_runs_alone(project: Path, tmp_path: Path) -> None:
    """Neither the tables nor any other notebook is run again for it, nor for weights that ship."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, copy_function=shutil.copyfile)  # all of it as old as now
    notebook(folder / "notebooks" / "trained" / "1-weights.ipynb", "results = 'book/results'")
    made = folder / "book" / "chapters" / "trained" / "1-weights.ipynb"
    made.parent.mkdir(parents=True)
    made.write_text("{}")
    for name in ("book/results/equal/safmn-seed0.json", "srlib/weights/new.safetensors"):
        done = snakemake(folder, "--touch")
        assert done.returncode == 0, done.stderr
        assert planned(folder) == {}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("new")
        assert planned(folder) == {"notebook": 1, "book": 1}


def test_another_budget_runs_everything(project: Path) -> None:
    everything = {"train": 1, "evaluate": 1, "notebook": 2, "book": 1}
    assert planned(project, "--config", "budget=short").items() >= everything.items()


@pytest.mark.parametrize("budget", ["smoke", "paper"])
def test_other_training_images_run_everything(project: Path, tmp_path: Path, budget: str) -> None:
    """The folder reaches training and the notebooks; a space in its name does no harm."""
    folder = tmp_path / "HR images"
    folder.mkdir()
    config = ("--config", f"budget={budget}", f"train={folder}")
    assert planned(project, *config).items() >= {"train": 1, "evaluate": 1, "notebook": 2, "book": 1}.items()
    printed = snakemake(project, "--dry-run", "--printshellcmds", *config).stdout
    assert printed.count(f"--data '{folder}'") == 1 and printed.count(f"--offer train_data '{folder}'") == 2


@pytest.mark.parametrize(
    ("config", "mend"),
    [
        (["budget=huge"], "unknown budget 'huge': choose one of smoke, short, paper"),
        (["budget=paper"], "give the folder of DIV2K's and Flickr2K's HR images: make book BUDGET=paper TRAIN=FOLDER"),
        (["budget=paper", "train=photos/train"], "make book BUDGET=paper TRAIN=FOLDER"),
        (["budget=paper", "train=nowhere"], "no folder nowhere to train on"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(project: Path, config: list[str], mend: str) -> None:
    done = snakemake(project, "--quiet", "rules", "progress", "host", "--config", *config)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert mend in line


def test_snakefile_names_notebooks_and_rows_that_exist() -> None:
    """The book's chapters are the notebooks; the Snakefile names chapters of them, and printed labels."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = set(re.findall(r"'file': 'chapters/([^']+)'", str(toc)))
    folder = ROOT / "notebooks"
    sources = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.ipynb")}
    assert chapters == {name for name in sources if ".ipynb_checkpoints" not in name}
    text = (ROOT / "Snakefile").read_text()
    named: dict[str, Any] = {}
    exec(text[text.index("\nMAIN =") : text.index("\nBUDGET =")], named)
    assert set(named["ROWS"]) | named["TIMED"] <= chapters
    for model, table, label in {row for rows in named["ROWS"].values() for row in rows}:
        assert table is None or papers.row(papers.paper_of(model), table, label).name == label


def test_snakefile_imports_no_torch() -> None:
    """The graph is read anew for every job."""
    code = "import sys, srlib.papers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_second_run_at_once_is_refused_and_a_killed_one_blocks_nothing(project: Path) -> None:
    import fcntl

    held = (project / ".snakemake" / "running").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    edit(project / "book" / "intro.md")
    done = snakemake(project, "--quiet", "rules", "progress", "host")
    assert done.returncode != 0 and "another run is at work" in done.stderr
    held.close()  # as the system does when a run is killed
    (project / ".snakemake" / "locks").mkdir(exist_ok=True)
    (project / ".snakemake" / "locks" / "0.output.lock").write_text("book/_build/html/index.html\n")
    assert "book" in planned(project)


def test_kernels_of_make_lab_start_in_the_projects_folder(tmp_path: Path) -> None:
    """Wherever a notebook lies: its paths are those of `make book`."""
    pytest.importorskip("jupyter_server")
    options = re.search(r"jupyterlab notebooks (--\S+)'\$\(CURDIR\)'", (ROOT / "Makefile").read_text())
    assert options
    code = "import sys; from jupyter_server.serverapp import ServerApp; app = ServerApp(); "
    code += "app.initialize(sys.argv[1:3], find_extensions=False, new_httpserver=False); "
    code += "print({app.kernel_manager.cwd_for_path(path) for path in sys.argv[3:]})"
    folder = ROOT / "notebooks"
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.ipynb")]
    command = [sys.executable, "-c", code, "notebooks", f"{options[1]}{ROOT}", *paths]
    own = {name: str(tmp_path) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    environment = os.environ | own | {"JUPYTER_NO_CONFIG": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    assert done.stdout.strip() == str({str(ROOT)}), done.stdout + done.stderr
