"""The batch reproduction on a real Slurm: a cluster of one node on this machine, with pretended GPUs. Skipped with the
reason where its programs cannot be had from Debian's packages, and where Slurm is configured already."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from srlib import papers, runs
from srlib.data import Store

psutil = pytest.importorskip("psutil", reason="the notebooks need the extra: pip install -e .[book]")
nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra: pip install -e .[book]")
pytest.importorskip("snakemake_executor_plugin_slurm", reason="Slurm needs the extra: pip install -e .[cluster]")

ROOT = Path(__file__).resolve().parent.parent
ETC = Path("/etc/slurm")  # jobs do not inherit SLURM_CONF, so the configuration must lie there
STEPS = 80  # a checkpoint every 20; at the budget smoke of the copied library
TRAINED = ".cache/trained/smoke/safmn"
CONFIG = """# by tests/test_cluster.py, which removes it
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
MinJobAge=3600
NodeName=localhost NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:2
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def slurm(*command: str) -> str:
    """What a command of Slurm prints; nothing where it fails, as before the cluster answers."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


def wait_for(done: Callable[[], object], what: str, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, debian: Callable[..., str]) -> Iterator[None]:
    """A cluster with one node of two GPUs, stopped at the end; /etc/slurm is then as before."""
    configured = [ETC / "slurm.conf", ETC / "gres.conf"]
    left = configured[0].exists() and configured[0].read_text().startswith(CONFIG[:30])  # by tests that were killed
    if os.geteuid() or "SLURM_CONF" in os.environ or (any(map(Path.exists, configured)) and not left):
        pytest.skip("these tests start a cluster of their own: as root, where no Slurm is configured")
    if problem := debian("slurmctld", "slurmd", "srun", "munged", packages="slurmctld slurmd slurm-client munge"):
        pytest.skip(f"no Slurm: {problem}")
    if slurm("sinfo"):
        pytest.skip("other tests have started a cluster here")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "key-file").write_bytes(os.urandom(1024))
    (folder / "key-file").chmod(0o400)
    names = ("key-file", "socket", "pid-file", "log-file", "seed-file")
    files = " ".join(f"--{name}={folder}/{name}" for name in names)
    programs = (f"munged --foreground --force {files}", "slurmctld -D", "slurmd -D -N localhost")
    started = []
    try:
        configured[0].write_text(CONFIG.format(folder=folder))
        configured[1].write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        for program in programs:
            with (folder / f"{program.split()[0]}.txt").open("w") as output:
                started.append(subprocess.Popen(program.split(), stdout=output, stderr=output))
            time.sleep(0.5)
        wait_for(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%T"), f"the cluster: see {folder}", 30)
        yield
        slurm("scancel", "--user=root")
        wait_for(lambda: not slurm("squeue", "--noheader"), "the end of all jobs", 30)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        for path in configured:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, smooth: Callable[..., torch.Tensor]) -> Iterator[Path]:
    """A project with the real Snakefile and library, its smoke budget cut, one page, and images in a folder with an
    awkward name; at the end what Slurm left running in it is stopped: of a killed job its outer Snakemake may stay."""
    folder = tmp_path_factory.mktemp("project")
    scripts = (f"notebooks/{name}.py" for name in ("run", "depends", "trainings"))
    for name in ("Snakefile", *scripts, "profiles/slurm/config.yaml", "book/results/runs.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "srlib", folder / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    whole, path = "Budget(steps=800, ablation_steps=120", folder / "srlib" / "runs.py"
    assert whole in (source := path.read_text())
    path.write_text(source.replace(whole, f"Budget(steps={STEPS}, ablation_steps={STEPS}"))
    cells = [nbformat.v4.new_code_cell('budget = "recorded"\ntrain_data = ""', metadata={"tags": ["parameters"]})]
    asked = "results.trained('safmn', 3, budget, train_data)"
    cells += [nbformat.v4.new_code_cell(f"from srlib import results\nprint({asked}.run.provenance['command'])")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "notebooks" / "page.ipynb")
    (folder / "o'brien").mkdir()
    for number in range(2):
        pixels = smooth(160, 160, number).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "o'brien" / f"{number}.png")
    yield folder
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(folder):
            process.kill()


# The plugin looks after its jobs ever more rarely, up to minutes later: here every second.
START = "import asyncio, sys; from snakemake.cli import main; from snakemake_executor_plugin_slurm import Executor; "
START += "Executor.sleep = lambda self: asyncio.sleep(1); main(sys.argv[1:])"
QUICK = """--slurm-status-command squeue --slurm-init-seconds-before-status-checks 2 --latency-wait 5
--set-threads train=1 score=1 notebook=1 --config budget=smoke tables=safmn-4 train=o'brien"""
Workflow = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def workflow(project: Path) -> Iterator[Workflow]:
    """A function that starts the workflow as its page says, for a cluster without accounting and jobs of seconds."""
    started = []

    def start(*targets: str, **settings: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", START, *targets, "--profile", "profiles/slurm", *QUICK.split()]
        command += [f"{name}={value}" for name, value in settings.items()]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SRLIB_")}
        clean["SRLIB_CACHE"] = ".cache"
        with (project / "said.txt").open("w") as said:
            started.append(subprocess.Popen(command, cwd=project, env=clean, stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def ended_well(process: subprocess.Popen[bytes], project: Path) -> bool:
    wait_for(lambda: process.poll() is not None, f"the end: see {project}/said.txt", 300)
    return process.returncode == 0


def jobs(part: str) -> list[dict[str, str]]:
    """The jobs up to now whose comment, rule and wildcards, has this part: JobId, JobState, TRES, TimeLimit ..."""
    lines = slurm("scontrol", "show", "job", "--oneliner").splitlines()
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if re.search(rf"Comment=\S*{part}", line)]


def run_of(project: Path, record: str) -> Path:
    return project / json.loads((project / TRAINED / record).read_text())["run"]


def test_a_graph_runs_on_slurm_and_a_killed_training_ends_as_if_undisturbed(
    cluster: None, project: Path, workflow: Workflow
) -> None:
    row, scores, page = "4/n-4/seed0.json", f"{TRAINED}/main/x3/seed0.csv", "book/chapters/page.ipynb"
    process = workflow(f"{TRAINED}/{row}", scores, page)
    wait_for(lambda: list(project.glob("runs/safmn-x4-*/state-*.pt")), f"a checkpoint: see {project}/said.txt")
    slurm("scancel", "--signal=KILL", jobs("n-4")[0]["JobId"])
    assert ended_well(process, project), (project / "said.txt").read_text()[-5000:]

    for rule, number, memory in (("train", 3, "16000M"), ("score", 1, "8000M"), ("notebook", 1, "8000M")):
        found = jobs(f"rule_{rule}_")
        assert len(found) == number and [job["JobState"] for job in found].count("COMPLETED") == min(number, 2)
        for job in found:
            assert f"cpu=1,mem={memory}" in job["TRES"] and job["TresPerJob"].endswith("gpu:1"), job
            assert job["TimeLimit"] == "01:00:00"
    assert "srlib train safmn --scale 3" in (project / page).read_text(), "the page shows the run of the job"
    assert "psnr" in (project / scores).read_text()

    run = run_of(project, row)
    assert json.loads((run / "run.json").read_text())["provenance"]["resumed_at"] in range(STEPS // 4, STEPS)
    images = Store.open(str(project / "o'brien"))
    config = runs.configure_row(papers.row("safmn", "4", "n-4"), images, steps=STEPS)
    alone = runs.train_or_load(config, images, images, root=project / "alone")
    assert alone.folder.name == run.name, "the same run, on one thread there and here"
    weights = load_file(alone.folder / "model.safetensors")
    assert all(torch.equal(tensor, weights.pop(name)) for name, tensor in load_file(run / "model.safetensors").items())
    assert not weights


def test_one_job_trains_by_two_processes_under_torchrun(cluster: None, project: Path, workflow: Workflow) -> None:
    process = workflow(f"{TRAINED}/main/x4/seed0.json", steps=4, gpus=2)
    assert ended_well(process, project), (project / "said.txt").read_text()[-5000:]
    (job,) = jobs("main_x4")
    made = json.loads((run_of(project, "main/x4/seed0.json") / "run.json").read_text())["provenance"]
    assert job["TresPerJob"].endswith("gpu:2") and made["processes"] == 2
