"""What is installed, and how it is said: files in step, a light core, layers, no address or path of one machine."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import srlib

yaml = pytest.importorskip("yaml")
requirements = pytest.importorskip("packaging.requirements")
specifiers = pytest.importorskip("packaging.specifiers")
canonical = pytest.importorskip("packaging.utils").canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
EXTRAS = PROJECT["optional-dependencies"]


def named(texts: list[str]) -> set[str]:
    """The names of requirements."""
    return {canonical(requirements.Requirement(text).name) for text in texts}


def pins() -> dict[str, str]:
    """The pinned versions by name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = {canonical(name): version for name, version in (line.split("==") for line in lines)}
    assert len(found) == len(lines)
    # No local suffix, so that any build of a version satisfies its pin; no CUDA package, as a CPU build needs none.
    assert all(re.fullmatch(r"\d+(\.\w+)*", version) for version in found.values())
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in found)
    return found


@pytest.mark.parametrize("text", PROJECT["dependencies"] + sum(EXTRAS.values(), []))
def test_a_requirement_is_pinned_to_an_allowed_version(text: str) -> None:
    asked = requirements.Requirement(text)
    assert pins()[canonical(asked.name)] in asked.specifier


def imports(path: Path) -> set[str]:
    """The packages that a file or the cells of a notebook import."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"srlib", "IPython"}  # which the kernel is


@pytest.mark.parametrize(("folder", "pattern"), [("srlib", "*.py"), ("notebooks", "*.ipynb"), ("notebooks", "*.py")])
def test_what_code_imports_is_required(folder: str, pattern: str) -> None:
    """And of srlib no more than the core, no matplotlib, no Jupyter, but for ``viz``, which draws, and ``export``."""
    own = {path.stem for path in (ROOT / folder).glob("*.py")}
    providers = {name: {canonical(one) for one in owners} for name, owners in packages_distributions().items()}
    core, more = named(PROJECT["dependencies"]), {"viz": "book", "export": "export"}
    for path in sorted((ROOT / folder).rglob(pattern)):
        extra = more.get(path.stem, "") if folder == "srlib" else "book"
        allowed = core | named(EXTRAS.get(extra, []))
        for name in imports(path) - own:
            assert providers.get(name, set()) & allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_conda_and_make_install_every_extra_under_the_pins() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    (python,) = [item.partition("=")[2] for item in listed if str(item).startswith("python=")]
    assert python in specifiers.SpecifierSet(PROJECT["requires-python"])
    makefile = (ROOT / "Makefile").read_text()
    assert pip[0] == "-c constraints.txt" and "--constraint constraints.txt" in makefile
    for asked in (re.search(r"\.\[([a-z,]+)\]", pip[1]), re.search(r"--editable '\.\[([a-z,]+)\]'", makefile)):
        assert asked and set(asked[1].split(",")) == set(EXTRAS)


def test_the_wheel_carries_every_data_file() -> None:
    """Whatever git keeps beside the code, weights among it, is named as data of its package."""
    known = SETTINGS["tool"]["setuptools"]["package-data"]
    folders = {package: ROOT.joinpath(*package.split(".")) for package in known}
    packed = {path for package, patterns in known.items() for one in patterns for path in folders[package].glob(one)}
    assert packed == {path for path in tracked() if path.is_relative_to(ROOT / "srlib") and path.suffix != ".py"}
    assert any(path.suffix == ".safetensors" for path in packed)


def test_all_modules_have_their_layer() -> None:
    """`make lint` compares; lazy imports count, and there are no exceptions."""
    layers = SETTINGS["tool"]["importlinter"]["contracts"][0]
    assert layers["exhaustive"] and "ignore_imports" not in layers


def tracked() -> list[Path]:
    """The files that git knows and that are here."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("no git here")
    if done.returncode:
        pytest.skip("no git repository here")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_package_mirror_or_a_path_of_one_machine() -> None:
    """Which index pip uses is a user's setting; where the project lies is nobody's business."""
    index = r"\b(?:index\Wurl|find\Wlinks|trusted\Whost)\b"
    machine = r"(?<![\w.:/~$}{*-])/(home|Users|root|opt|work)/\w"
    for path in tracked():
        if path.suffix in (".safetensors", ".png"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            found = re.search(f"{index}|{machine}", line)
            assert not found, f"{path.relative_to(ROOT)}:{number}: {found[0]}"


def test_the_version_and_the_licence_are_said_alike() -> None:
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == srlib.__version__ and citation["license"] == PROJECT["license"]


def test_ci_and_hooks_run_what_make_runs() -> None:
    """The published build has GitHub's own actions, limits, and the right to publish in one job alone."""
    makefile = (ROOT / "Makefile").read_text()
    text = (ROOT / ".github" / "workflows" / "book.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    called = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert called == ["make lint", "make book", "make test"]
    assert re.search("for target in (.*); do", (ROOT / ".ci" / "run").read_text())[1] == "lint book test"
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", used) for used in re.findall(r"uses: (\S+)", text))
    assert all(job["timeout-minutes"] <= 90 for job in jobs.values())
    granted = {name: job["permissions"] for name, job in jobs.items() if "permissions" in job}
    assert granted == {"publish": {"pages": "write", "id-token": "write"}}
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"} and "main" in jobs["publish"]["if"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "nothing is fetched from elsewhere"
    for hook in hooks[0]["hooks"]:
        assert f"$(BIN)/{hook['entry'].split()[0].removeprefix('.venv/bin/')} " in makefile, hook["id"]
