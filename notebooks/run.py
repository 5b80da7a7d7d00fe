"""Execute a notebook from top to bottom in a clean kernel, and keep the result only if every cell ran.

    python notebooks/run.py SOURCE.ipynb RESULT.ipynb [--budget BUDGET] [--timeout SECONDS]

The kernel is this Python, started in the project's folder, without the user's settings of IPython, Jupyter and
matplotlib. ``--budget`` and the variable SRLIB_TRAIN set the notebook's parameters ``budget`` and ``train_data``,
where its cell tagged ``parameters`` has them. Of a notebook that fails, or is not done in time, what ran is kept as
RESULT.failed.ipynb, and the exit code is 1.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def clean_environment(folder: Path) -> None:
    """Point IPython and Jupyter at an empty folder, and matplotlib at its defaults."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        os.environ[name] = str(folder / name.lower())
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "PYTHONSTARTUP"):
        os.environ.pop(name, None)
    fonts = ROOT / ".cache" / "matplotlib"  # its list of fonts, made once
    fonts.mkdir(parents=True, exist_ok=True)
    (fonts / "matplotlibrc").touch()
    os.environ |= {"MPLCONFIGDIR": str(fonts), "MATPLOTLIBRC": str(fonts / "matplotlibrc")}
    os.environ |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "SRLIB_PROGRESS": "line"}
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PLATFORM_DIRS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def set_parameters(notebook: nbformat.NotebookNode, values: dict[str, str]) -> None:
    """Insert a cell after the one tagged ``parameters`` that sets those of ``values`` that it assigns otherwise."""
    for place, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", []):
            assigned = dict(re.findall(r"""^(\w+)(?:: *\w+)? *= *["'](.*)["']""", cell.source, re.M))
            changed = [f"{name} = {value!r}" for name, value in values.items() if assigned.get(name, value) != value]
            if changed:
                tags = {"tags": ["injected-parameters"]}
                notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(changed), metadata=tags))
            return


def execute(notebook: nbformat.NotebookNode, timeout: float) -> str:
    """Run all cells within ``timeout`` seconds; what went wrong in one line, or nothing."""
    from nbclient import NotebookClient  # these read the environment when they are imported
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    end = time.monotonic() + timeout
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        timeout_func=lambda cell: max(end - time.monotonic(), 0.1),
        resources={"metadata": {"path": str(ROOT)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}".strip().splitlines()[0]
    except CellTimeoutError:
        return f"stopped at the limit of {timeout:g} s for the whole notebook"
    except DeadKernelError:
        return "the kernel died: out of memory, or killed from outside"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--budget", default="recorded")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for the notebook as a whole")
    asked = parser.parse_args()
    start = time.monotonic()
    notebook = nbformat.read(asked.source, as_version=4)
    set_parameters(notebook, {"budget": asked.budget, "train_data": os.environ.get("SRLIB_TRAIN") or "photos/train"})
    with tempfile.TemporaryDirectory(prefix="srlib-notebook-") as folder:
        clean_environment(Path(folder))
        problem = execute(notebook, asked.timeout)
    failed = asked.result.with_suffix(".failed.ipynb")
    half = asked.result.with_suffix(".half")
    half.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, half)
    half.replace(failed if problem else asked.result)
    if problem:
        print(f"{asked.source}: {problem}; what ran is in {failed}", file=sys.stderr)
        return 1
    failed.unlink(missing_ok=True)
    print(f"{asked.source}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
