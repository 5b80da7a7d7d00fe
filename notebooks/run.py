"""Execute a notebook by papermill in a clean kernel, and keep the result only if every cell ran.

    python notebooks/run.py SOURCE.ipynb RESULT.ipynb [SECONDS]

The kernel is this Python, in the current folder, without the user's settings of IPython, Jupyter and matplotlib. The
variables SRLIB_BUDGET and SRLIB_TRAIN set the notebook's parameters ``budget`` and ``train_data``, where it has them.
Of a notebook that fails, or has a cell that takes longer than so many seconds (default 900), what ran is kept as
RESULT.failed.ipynb, and the exit code is 1.
"""

import os
import sys
import tempfile
import time
from pathlib import Path


def clean_environment(folder: Path) -> None:
    """Point IPython and Jupyter at an empty folder, and matplotlib at its defaults."""
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "PYTHONSTARTUP"):
        os.environ.pop(name, None)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        os.environ[name] = str(folder / name.lower())
    fonts = Path(".cache/matplotlib").resolve()  # its list of fonts, made once
    fonts.mkdir(parents=True, exist_ok=True)
    (fonts / "matplotlibrc").touch()
    os.environ |= {"MPLCONFIGDIR": str(fonts), "MATPLOTLIBRC": str(fonts / "matplotlibrc")}
    os.environ |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "SRLIB_PROGRESS": "line"}
    # glibc keeps what is freed, or each large tensor would be paged in anew: as in the recorded times of an image
    keep = {"MMAP_THRESHOLD_": 1 << 25, "TRIM_THRESHOLD_": 1 << 34, "TOP_PAD_": 1 << 29}
    os.environ |= {f"MALLOC_{name}": str(size) for name, size in keep.items()}
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PLATFORM_DIRS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def execute(source: str, result: str, seconds: int) -> str:
    """Run all cells, with the parameters that the notebook sets otherwise; what went wrong in one line, or nothing."""
    import papermill  # reads the environment when it is imported

    variables = {"budget": "SRLIB_BUDGET", "train_data": "SRLIB_TRAIN"}
    usual = {name: one["default"].strip("'\"") for name, one in papermill.inspect_notebook(source).items()}
    asked = {name: os.environ.get(variable) for name, variable in variables.items() if name in usual}
    parameters = {name: value for name, value in asked.items() if value and value != usual[name]}
    options = {"kernel_name": "python3", "cwd": ".", "progress_bar": False, "extra_arguments": ["--log-level=CRITICAL"]}
    try:
        papermill.execute_notebook(source, result, parameters, execution_timeout=seconds, **options)
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}".strip().splitlines()[0]
    except (TimeoutError, RuntimeError) as error:  # a cell that takes too long, a kernel that was killed
        return str(error).strip().splitlines()[0]
    return ""


def main(source: str, target: str, seconds: str = "900") -> str | None:
    """Execute a notebook; what went wrong, for ``sys.exit``."""
    start, result = time.monotonic(), Path(target)
    failed = result.with_suffix(".failed.ipynb")
    failed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="srlib-notebook-") as folder:
        clean_environment(Path(folder))
        if problem := execute(source, str(failed), int(seconds)):
            return f"{source}: {problem}; what ran is in {failed}"
    failed.replace(result)
    print(f"{source}: {time.monotonic() - start:.0f} s", flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
