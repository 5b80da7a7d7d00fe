"""What is installed, and how it is said: three files in step, a light core, no address or path of one machine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import srlib

yaml = pytest.importorskip("yaml")
requirements = pytest.importorskip("packaging.requirements")
utils = pytest.importorskip("packaging.utils")
specifiers = pytest.importorskip("packaging.specifiers")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    """The pinned versions by normalised name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return {utils.canonicalize_name(name): version for name, version in found.items()}


@pytest.mark.parametrize("text", PROJECT["dependencies"] + sum(EXTRAS.values(), []))
def test_dependency_is_pinned_to_an_allowed_version(text: str) -> None:
    asked = requirements.Requirement(text)
    assert pins()[utils.canonicalize_name(asked.name)] in asked.specifier


def test_pins_are_exact_plain_versions() -> None:
    """No local suffix, so that any build of a version satisfies its pin; no CUDA package, as a CPU build needs none."""
    for name, version in pins().items():
        assert re.fullmatch(r"\d+(\.\w+)*", version), f"{name}=={version}"
        assert not name.startswith(("nvidia", "cuda")) and name != "triton"


def test_conda_file_installs_the_same() -> None:
    """environment.yml hands this project with all extras and the same pins to pip, under a Python that is allowed."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    assert pip[0] == "-c constraints.txt" and len(pip) == 2
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", pip[1])
    assert extras and set(extras[1].split(",")) == set(EXTRAS)
    named = dict(item.split("=") for item in listed if isinstance(item, str) and "=" in item)
    assert set(named) == {"python"} and "pip" in listed
    assert named["python"] in specifiers.SpecifierSet(PROJECT["requires-python"])


def test_makefile_installs_every_extra_under_the_pins() -> None:
    text = (ROOT / "Makefile").read_text()
    extras = re.search(r"--editable '\.\[([a-z,]+)\]'", text)
    assert extras and set(extras[1].split(",")) == set(EXTRAS)
    assert "--constraint constraints.txt" in text


def test_the_published_build_calls_make_and_may_do_no_more_than_it_must() -> None:
    """GitHub's workflow: targets that the Makefile has, GitHub's own actions by major version, a limit for each job,
    and the right to publish in one job alone, which runs nothing of this project."""
    text = (ROOT / ".github" / "workflows" / "book.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    called = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert [words[:2] for words in called] == [["make", "lint"], ["make", "book"], ["make", "test"]]
    assert {words[1] for words in called} <= targets
    for used in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", used)
    assert all(job["timeout-minutes"] <= 120 for job in jobs.values())
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    granted = {name: job["permissions"] for name, job in jobs.items() if "permissions" in job}
    assert granted == {"publish": {"pages": "write", "id-token": "write"}}
    assert "main" in jobs["publish"]["if"] and jobs["publish"]["needs"] == "build"


def test_core_is_light() -> None:
    names = {requirements.Requirement(text).name for text in PROJECT["dependencies"]}
    assert not names & {"jupyterlab", "jupyter-book", "papermill", "snakemake", "matplotlib", "pandas", "pytest"}
    heavy = "('IPython', 'matplotlib', 'pandas', 'seaborn')"
    code = f"import sys, srlib.cli, srlib.runs; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_version_is_said_once() -> None:
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == srlib.__version__ and citation["license"] == PROJECT["license"]


def tracked() -> list[Path]:
    """The text files that git knows."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("git is not installed: the tracked files are not known")
    if done.returncode:
        pytest.skip("not a git clone: the tracked files are not known")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_no_address_of_an_index_and_no_path_of_a_machine() -> None:
    """Where packages come from is the user's setting; where the project lies is nobody's business."""
    index = (
        r"--(extra-)?index-url|--find-links|--trusted-host|https?://[^\s\"')]*/(simple|whl)\b|download\.pytorch\.org"
    )
    machine = r"(?<![\w.:/~$}{*-])/(home|Users|root|opt|work)/\w"
    for path in tracked():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            found = re.search(f"{index}|{machine}", line)
            assert not found, f"{path.relative_to(ROOT)}:{number}: {found[0]}"


def test_the_wheel_carries_every_data_file() -> None:
    """Whatever git keeps beside the code, weights among it, is named as data of its package."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for name, patterns in known.items() for one in patterns for path in place(name).glob(one)}
    beside = {path for path in place("srlib").rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert packed == beside and any(path.suffix == ".safetensors" for path in packed)


def place(package: str) -> Path:
    """The folder of a package."""
    return ROOT.joinpath(*package.split("."))
