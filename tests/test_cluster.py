"""The batch reproduction on a real Slurm: a cluster of one node on this machine, with pretended GPUs.

Its programs come from the Debian packages, which are installed here where that is allowed. Without them, or where
Slurm is configured already, the tests are skipped with the reason.
"""

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

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra: pip install -e .[book]")
pytest.importorskip("snakemake_executor_plugin_slurm", reason="Slurm needs the extra: pip install -e .[cluster]")

ROOT = Path(__file__).resolve().parent.parent
ETC = Path("/etc/slurm")  # jobs do not inherit SLURM_CONF, so the configuration must lie there
STEPS = 120  # a checkpoint every 30
TRAINED = ".cache/trained/smoke/safmn"
CONFIG = """# by tests/test_cluster.py, which removes it
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
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
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in ("key-file", "socket", "pid-file")]
    munge += [f"--{name}={folder}/munge.{name}" for name in ("log-file", "seed-file")]
    started = []
    try:
        configured[0].write_text(CONFIG.format(folder=folder))
        configured[1].write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            output = (folder / f"{command[0]}.txt").open("w")
            started.append(subprocess.Popen(command, stdout=output, stderr=output))
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
def project(tmp_path_factory: pytest.TempPathFactory, smooth: Callable[..., torch.Tensor]) -> Path:
    """A project with the real Snakefile and library, one page, and images in a folder with an awkward name."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("Snakefile", "notebooks/run.py", "notebooks/depends.py", "profiles/slurm/config.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "srlib", folder / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    cells = [nbformat.v4.new_code_cell('budget = "recorded"\ntrain_data = ""', metadata={"tags": ["parameters"]})]
    asked = f"results.trained('safmn', 2, budget, train_data, steps={STEPS})"
    cells += [nbformat.v4.new_code_cell(f"from srlib import results\nprint({asked}.run.provenance['command'])")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "notebooks" / "page.ipynb")
    (folder / "o'brien").mkdir()
    for number in range(2):
        pixels = smooth(160, 160, number).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "o'brien" / f"{number}.png")
    return folder


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., Callable[[], None]]]:
    """A function that starts the workflow as its page says, with what this cluster lacks: accounting, and jobs that
    take minutes. What it gives waits for the end."""
    processes = []
    quick = (
        "--slurm-status-command squeue --slurm-init-seconds-before-status-checks 2 --seconds-between-status-checks 2"
    )
    quick += (
        " --latency-wait 5 --set-threads train=1 score=1 notebook=1 --config budget=smoke tables=none train=o'brien"
    )

    def run(*targets: str, **settings: object) -> Callable[[], None]:
        command = [sys.executable, "-m", "snakemake", *targets, "--profile", "profiles/slurm", *quick.split()]
        command += [f"{name}={value}" for name, value in settings.items()]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SRLIB_")}
        said = project / "snakemake.txt"
        with said.open("w") as out:
            environment = clean | {"SRLIB_CACHE": ".cache"}
            process = subprocess.Popen(command, cwd=project, env=environment, stdout=out, stderr=subprocess.STDOUT)
        processes.append(process)

        def finish() -> None:
            wait_for(lambda: process.poll() is not None, f"the workflow: see {said}", 240)
            assert process.returncode == 0, said.read_text()[-5000:]

        return finish

    yield run
    for process in processes:
        process.kill()


def jobs() -> list[dict[str, str]]:
    """All jobs up to now, as Slurm tells them: JobId, JobState, Comment (rule and wildcards), TRES, TimeLimit ..."""
    return [
        dict(re.findall(r"(\w+)=(\S*)", line)) for line in slurm("scontrol", "show", "job", "--oneliner").splitlines()
    ]


def run_of(project: Path, record: str) -> Path:
    """The folder of a finished run."""
    return project / json.loads((project / TRAINED / record).read_text())["run"]


def made(project: Path, record: str) -> dict[str, object]:
    return json.loads((run_of(project, record) / "run.json").read_text())["provenance"]


def test_a_graph_runs_on_slurm_and_a_killed_training_ends_as_if_undisturbed(
    cluster: None, project: Path, start: Callable[..., Callable[[], None]]
) -> None:
    row, page = f"{TRAINED}/4/n-4/seed0.json", "book/chapters/page.ipynb"
    finish = start(row, f"{TRAINED}/main/x2/seed0.csv", page, steps=STEPS)
    wait_for(lambda: list(project.glob("runs/safmn-x4-*/state-*.pt")), "a checkpoint")
    (victim,) = [job["JobId"] for job in jobs() if "n-4" in job["Comment"]]
    slurm("scancel", "--signal=KILL", victim)
    finish()

    found = {
        rule: [job for job in jobs() if job["Comment"].startswith(f"rule_{rule}")]
        for rule in ("train", "score", "notebook")
    }
    assert {rule: len(each) for rule, each in found.items()} == {"train": 3, "score": 1, "notebook": 1}
    assert [job["JobState"] for job in found["train"]].count("COMPLETED") == 2
    for job in sum(found.values(), []):
        assert job["TresPerJob"].endswith("gpu:1") and "cpu=1," in job["TRES"] and job["TimeLimit"] == "01:00:00", job
        assert ("mem=16000M" if "train" in job["Comment"] else "mem=8000M") in job["TRES"], job
    assert "srlib train safmn --scale 2" in (project / page).read_text(), "the page shows the run of its job"
    assert "160" not in (scores := (project / TRAINED / "main/x2/seed0.csv").read_text()) and "psnr" in scores

    assert made(project, "4/n-4/seed0.json")["resumed_at"] in range(STEPS // 4, STEPS)
    command = (
        "train safmn --table 4 --row n-4 --budget smoke --data o'brien --runs undisturbed --record alone.json --steps"
    )
    alone = [sys.executable, "-m", "srlib", *command.split(), str(STEPS)]
    subprocess.run(alone, cwd=project, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=90)
    folder = run_of(project, "4/n-4/seed0.json")
    weights = [
        load_file(place / folder.name / "model.safetensors") for place in (folder.parent, project / "undisturbed")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_one_job_trains_by_two_processes_under_torchrun(
    cluster: None, project: Path, start: Callable[..., Callable[[], None]]
) -> None:
    finish = start(f"{TRAINED}/main/x3/seed0.json", steps=4, gpus=2)
    finish()
    (job,) = [job for job in jobs() if "main_x3" in job["Comment"]]
    assert job["TresPerJob"].endswith("gpu:2") and made(project, "main/x3/seed0.json")["processes"] == 2
