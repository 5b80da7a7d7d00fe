"""Execute a notebook by papermill in a clean kernel, and keep the result only if every cell ran.

    python notebooks/run.py SOURCE.ipynb RESULT.ipynb [--budget BUDGET] [--timeout SECONDS]

The kernel is this Python, started in the project's folder, without the user's settings of IPython, Jupyter and
matplotlib. ``--budget`` and the variable SRLIB_TRAIN set the notebook's parameters ``budget`` and ``train_data``, where
it has them. Of a notebook that fails, or has a cell that takes too long, what ran is kept as RESULT.failed.ipynb, and
the exit code is 1.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

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


def execute(source: Path, result: Path, wanted: dict[str, str], timeout: float) -> str:
    """Run all cells, with the parameters that the notebook sets otherwise; what went wrong in one line, or nothing."""
    import papermill  # reads the environment when it is imported

    usual = {name: one["default"] for name, one in papermill.inspect_notebook(str(source)).items()}
    parameters = {name: value for name, value in wanted.items() if usual.get(name, repr(value)).strip("'\"") != value}
    try:
        papermill.execute_notebook(
            str(source),
            str(result),
            parameters,
            kernel_name="python3",
            cwd=".",
            progress_bar=False,
            execution_timeout=round(timeout),
            extra_arguments=["--log-level=CRITICAL"],
        )
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}".strip().splitlines()[0]
    except (TimeoutError, RuntimeError) as error:  # a cell that takes too long, a kernel that was killed
        return str(error).strip().splitlines()[0]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--budget", default="recorded")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a cell")
    asked = parser.parse_args()
    start = time.monotonic()
    # Relative paths, as papermill reads braces in a path as names of parameters.
    source, result = (Path(os.path.relpath(path, ROOT)) for path in (asked.source, asked.result))
    os.chdir(ROOT)
    half, failed = result.with_suffix(".half.ipynb"), result.with_suffix(".failed.ipynb")
    half.parent.mkdir(parents=True, exist_ok=True)
    wanted = {"budget": asked.budget, "train_data": os.environ.get("SRLIB_TRAIN") or "photos/train"}
    with tempfile.TemporaryDirectory(prefix="srlib-notebook-") as folder:
        clean_environment(Path(folder))
        problem = execute(source, half, wanted, asked.timeout)
    if problem:
        half.replace(failed)
        print(f"{source}: {problem}; what ran is in {failed}", file=sys.stderr)
        return 1
    half.replace(result)
    failed.unlink(missing_ok=True)
    print(f"{source}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
