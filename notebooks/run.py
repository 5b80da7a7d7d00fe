"""Run a notebook from top to bottom in a clean kernel, and keep the result only if every cell ran.

    python notebooks/run.py SOURCE.ipynb RESULT.ipynb [--timeout SECONDS] [-p NAME VALUE]... [--offer NAME VALUE]...

The kernel is this Python, started in the project's folder, with IPython and Jupyter folders of its own: nothing of
the user's settings, kernels or history is read or written. The result appears whole or not at all; of a notebook that
fails, the partly executed copy is kept beside it as RESULT.failed.ipynb. Exit codes: 0 done, 1 the notebook failed,
2 it was refused before it was started.

What made the result is kept in its metadata, under "srlib": the notebook, its parameters and which of them differ from
their defaults, the seconds that it took, commit, versions, device and threads, and what of the project it read: trained
runs, image sets by fingerprint, score records.
"""

import argparse
import ast
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 900.0
PACKAGES = ("torch", "numpy", "scikit-image", "Pillow", "matplotlib")  # whose versions a record holds, where installed


class Refused(Exception):
    """The notebook cannot be started as asked."""


class Failed(Exception):
    """The notebook was started and did not reach its end."""


def shown(path: Path) -> str:
    """The path seen from the project's folder where it lies inside it, else its name alone."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def read(source: Path) -> dict:
    """The notebook as the dictionary that its JSON holds."""
    if not source.is_file():
        raise Refused(f"no notebook {shown(source)}: give the path of an .ipynb file")
    try:
        notebook = json.loads(source.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (ValueError, KeyError, TypeError):
        cells = None
    if not isinstance(cells, list):
        raise Refused(f"{shown(source)} is not a notebook (format 4): open it in JupyterLab and save it again")
    return notebook


def text(cell: dict) -> str:
    """A cell's source as one string; a notebook file may hold a list of lines."""
    return "".join(cell["source"])


def defaults(notebook: dict, name: str) -> dict[str, object]:
    """What the cell tagged `parameters` assigns, by name: the value where it is a literal, None elsewhere."""
    tagged = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if not tagged:
        return {}
    try:
        body = ast.parse(text(tagged[0])).body
    except SyntaxError as error:
        why = f"{error.msg}, line {error.lineno}"
        raise Refused(f"{name}: the cell tagged parameters is not plain Python ({why})") from None
    found: dict[str, object] = {}
    for statement in body:
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        try:
            value = ast.literal_eval(statement.value) if statement.value else None
        except ValueError:
            value = None
        found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found


def parameters(given: list[list[str]], known: dict[str, object], name: str) -> dict[str, object]:
    """The given values by name: text where the default is text, otherwise read as a Python literal if possible."""
    values: dict[str, object] = {}
    for key, value in given:
        if not known:
            raise Refused(f"{name} takes no parameters, as no cell is tagged parameters: leave -p {key} out or tag one")
        if key not in known:
            raise Refused(f"{name} has no parameter {key!r}: its parameters are {', '.join(known)}")
        try:
            values[key] = value if isinstance(known[key], str) else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
    return values


def isolate(folder: Path, device: object = None) -> None:
    """Point IPython and Jupyter at folders of this run's own, with one kernel in them: this Python, no history.

    ``device`` is the notebook's parameter of that name, None for one that has none: its record tells that device.
    """
    profile = folder / "ipython" / "profile_default"
    kernel = folder / "data" / "kernels" / "python3"
    for path in (profile, kernel, folder / "runtime", folder / "config"):
        path.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text(
        "c = get_config()\nc.HistoryManager.enabled = False\nc.IPKernelApp.log_level = 'ERROR'\n"
        f"import sys\nsys.path.insert(0, {str(Path(__file__).resolve().parent)!r})\nimport run\nsys.path.pop(0)\n"
        "c.IPKernelApp.extensions = ['run']\n"
    )
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    os.environ |= {
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_PATH": str(folder / "data"),
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "SRLIB_PROGRESS": "line",  # nobody watches: one summary line instead of a bar
        "KINETO_LOG_LEVEL": "99",  # the profiler's progress has no place on a page
        "SRLIB_NOTED": str(folder / "noted.json"),  # where the kernel notes what it reads, and with what
        "SRLIB_DEVICE": str(device or "auto"),
    }


def load_ipython_extension(shell: Any) -> None:
    """In the kernel: note after each cell what of the project was read so far, and what computes there."""
    opened: dict[str, None] = {}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened[os.path.abspath(os.fspath(arguments[0]))] = None

    def note(*_: object) -> None:
        noted = read_of_project(list(opened), Path(os.environ.get("SRLIB_CACHE") or "~/.cache/srlib").expanduser())
        if "srlib" in sys.modules:
            noted |= computing()
        Path(os.environ["SRLIB_NOTED"]).write_text(json.dumps(noted), encoding="utf-8")

    sys.addaudithook(watch)
    shell.events.register("post_run_cell", note)


def computing() -> dict[str, object]:
    """The commit of srlib, the device that the notebook asks for or srlib chooses, and torch's threads (imports
    torch)."""
    import torch

    from srlib.complexity import describe_device
    from srlib.errors import InputError
    from srlib.runs import commit, pick_device

    try:
        device = pick_device(os.environ.get("SRLIB_DEVICE", "auto"))
    except InputError:  # which the notebook meets by itself, and says
        device = pick_device("auto")
    return {"commit": commit(), "device": describe_device(device), "threads": torch.get_num_threads()}


def with_changes(commit: str, source: Path) -> str:
    """The commit of srlib, marked "+changes" where the notebook or the score records differ from it, too."""
    if commit == "unknown" or commit.endswith("+changes"):
        return commit
    asked = ["git", "--no-optional-locks", "-C", str(ROOT), "status", "--porcelain", "--", str(source), "book/results"]
    answer = subprocess.run(asked, capture_output=True, text=True)
    return commit if answer.returncode == 0 and not answer.stdout.strip() else f"{commit}+changes"


def read_of_project(paths: list[str], cache: Path, root: Path = ROOT) -> dict[str, list[Any]]:
    """What of these files are parts of the project: the names of trained runs, image sets, and score records, each in
    the order in which it was first opened.

    An image set, of which ``cache`` is the folder, is told by the fingerprint of its images, how many there are, and
    the fingerprints of the LR images that were used, by scale.
    """
    runs: dict[str, None] = {}
    scores: dict[str, None] = {}
    sets: dict[str, dict[str, Any]] = {}
    stores, results = cache.absolute() / "stores", root / "book" / "results"
    for path in map(Path, paths):
        if path.suffix in (".json", ".csv") and path.parent.parent == root / "runs":
            runs[path.parent.name] = None
        elif path.suffix == ".json" and path.is_relative_to(results):
            scores[path.relative_to(results).as_posix()] = None
        elif path.name == "index.json" and path.parent.parent == stores and path.is_file():
            index = json.loads(path.read_text(encoding="utf-8"))
            key, _, reduced = path.parent.name.partition("-x")
            one = sets.setdefault(key, {"fingerprint": "", "images": len(index["images"]), "lr": {}})
            if reduced:
                one["lr"][reduced.partition("-")[0]] = index["fingerprint"]
            else:
                one["fingerprint"] = index["fingerprint"]
    return {"runs": list(runs), "images": list(sets.values()), "scores": list(scores)}


def write(notebook: dict, path: Path) -> None:
    """Write the notebook whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def tidy(notebook: dict, known: dict[str, object]) -> dict:
    """Take clock times out of the metadata, and paths out of it and of the injected parameters, and hide those that
    only repeat the defaults."""
    from papermill.translators import PythonTranslator  # here, as it reads the environment that isolate() sets

    noted = notebook["metadata"].get("papermill", {})
    kept = {key: noted[key] for key in ("parameters", "duration") if noted.get(key) is not None}
    injected = kept.get("parameters", {})
    told = {key: portable(value) for key, value in injected.items()}
    notebook["metadata"]["papermill"] = kept | ({"parameters": told} if injected else {})
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            repeated = all(known.get(key) == value for key, value in injected.items())
            tags.append("remove-cell" if repeated else "hide-input")
            if told != injected:
                cell["source"] = PythonTranslator.codify(told)
        if not tags:
            cell["metadata"].pop("tags", None)
    return notebook


def made(
    source: Path, known: dict[str, object], values: dict[str, object], seconds: float, timeout: float, noted: Path
) -> dict:
    """What made a result: the notebook, its parameters, those that differ with their defaults, how long it took and
    might have, versions, and what the kernel noted."""
    found = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    if "commit" in found:
        found["commit"] = with_changes(found["commit"], source)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "notebook": shown(source),
        "parameters": {name: portable(value) for name, value in (known | values).items()},
        "changed": {name: known[name] for name, value in values.items() if value != known[name]},
        "given": list(values),
        "seconds": round(seconds, 1),
        "timeout": timeout,
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
    } | found


def portable(value: object) -> object:
    """A parameter's value without a path of this machine: of a folder elsewhere, its name alone."""
    if isinstance(value, str) and value.startswith(("/", "~")):
        return f"\u2026/{Path(value).name}"
    return value


def place(notebook: dict) -> str:
    """The last cell that was started: its number in the source notebook, counted from 1, and its first line of code."""
    number, last = 0, "before its first cell"
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "papermill-error-cell-tag" in tags:
            continue
        injected = "injected-parameters" in tags
        number += not injected
        if cell["cell_type"] == "code" and cell["metadata"].get("papermill", {}).get("start_time"):
            first = next((line.strip() for line in text(cell).splitlines() if line.strip()), "")
            last = "in the injected parameters" if injected else f"in cell {number} ({first})"
    return last


def execute(source: Path, partly: Path, values: dict[str, object], timeout: float) -> None:
    """Run every cell, saving to `partly` as it goes; the limit is on the notebook as a whole.

    Raises Failed with a reason without the cell.
    """
    import papermill  # here, as it reads the environment that isolate() sets
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # this file says what went wrong
    end = time.monotonic() + timeout
    try:
        papermill.execute_notebook(
            str(source),
            str(partly),
            parameters=values,
            kernel_name="python3",
            language="python",
            cwd=str(ROOT),
            progress_bar=sys.stderr.isatty(),
            start_timeout=math.ceil(min(timeout, 120)),
            timeout_func=lambda cell: max(end - time.monotonic(), 0.1),
            shutdown_kernel="immediate",
        )
    except PapermillExecutionError as error:
        reason = (error.evalue or "").strip().splitlines() or [""]
        raise Failed(f"{error.ename}: {reason[0]}".removesuffix(": ")) from None
    except CellTimeoutError:
        raise Failed(f"stopped at the limit of {timeout:g} s for the whole notebook (--timeout)") from None
    except DeadKernelError:
        raise Failed("the kernel died (out of memory, or killed from outside)") from None
    except (PapermillException, RuntimeError, OSError) as error:
        raise Failed(f"the kernel could not be used: {str(error).splitlines()[0]}") from None


def run(source: Path, result: Path, given: list[list[str]], offered: list[list[str]], timeout: float) -> str:
    """Run one notebook; the line that says how it went. Raises Refused or Failed, each with one line.

    Of the ``offered`` parameters those are set that the notebook has; a ``given`` one that it has not is refused.
    """
    name = shown(source)
    notebook = read(source)
    if result == source:
        raise Refused(f"{name}: the result would replace the source; name another file")
    if result.suffix != ".ipynb":
        raise Refused(f"{result.name}: the result is a notebook, so its name ends in .ipynb")
    if not timeout > 0:
        raise Refused(f"--timeout {timeout:g}: the limit is a number of seconds above 0")
    known = defaults(notebook, name)
    values = parameters([pair for pair in offered if pair[0] in known] + given, known, name)
    failed = result.with_name(f"{result.stem}.failed.ipynb")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="srlib-notebook-", ignore_cleanup_errors=True) as folder:
        isolate(Path(folder), (known | values).get("device"))
        partly = Path(folder) / "partly.ipynb"
        try:
            execute(source, partly, values, timeout)
        except Failed as error:
            if not partly.is_file():
                raise Failed(f"{name} failed before its first cell: {error}") from None
            half = read(partly)
            where = place(half)
            write(tidy(half, known), failed)
            raise Failed(f"{name} failed {where}: {error}; partly executed copy: {shown(failed)}") from None
        done = tidy(read(partly), known)
        seconds = time.monotonic() - start
        done["metadata"]["srlib"] = made(source, known, values, seconds, timeout, Path(folder) / "noted.json")
        write(done, result)
    failed.unlink(missing_ok=True)
    cells = sum(cell["cell_type"] == "code" for cell in notebook["cells"])
    return f"{name}: {cells} cells in {time.monotonic() - start:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the notebook to run")
    parser.add_argument("result", type=Path, help="where the executed notebook goes")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for the notebook as a whole")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    offer = "set a parameter if the notebook has it"
    parser.add_argument("--offer", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=offer)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel and its folders go, too
    try:
        print(run(asked.source.resolve(), asked.result.resolve(), asked.p, asked.offer, asked.timeout), flush=True)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{asked.source.name}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
