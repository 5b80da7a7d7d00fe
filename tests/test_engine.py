"""Training loses nothing: real processes are killed, stopped, starved of disk and started twice, and the run ends the
same."""

import contextlib
import csv
import errno
import io
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, SoftFileLock
from PIL import Image
from safetensors.torch import load_file

from srlib import checkpoints, papers, processes, profiling, runs
from srlib.checkpoints import States, decode
from srlib.data import Store, folder
from srlib.errors import InputError, Stopped
from srlib.models import create, safmn
from srlib.models.safmn import SAFMNConfig
from srlib.processes import SIGNALS, Signals
from srlib.train import State, TrainConfig, Watch, make_objective

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked: not on this system")


class Process:
    """A command of srlib in a process of its own."""

    def __init__(self, forks: "Forks", job: dict) -> None:
        self.forks, self.output = forks, Path(job["output"])
        self.pid = int(forks.ask(job))

    def wait(self) -> int:
        return int(self.forks.ask({"wait": self.pid}))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        return self.output.read_text()


class Forks:
    """The process that forks (``forks.py``)."""

    def __init__(self, place: Path) -> None:
        self.place, self.count = place, 0
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "SRLIB_CACHE": str(place / "cache"),
            "SRLIB_PROGRESS": "line",
        }
        environment.pop("SRLIB_DATA", None)
        self.server = subprocess.Popen(
            [sys.executable, HERE / "forks.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.server.stdout.readline().strip() == "forks.py"

    def ask(self, line: dict) -> str:
        self.server.stdin.write(json.dumps(line) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def start(self, *arguments: object, hooks: tuple[str, ...] = (), **environment: object) -> Process:
        self.count += 1
        output = self.place / f"said-{self.count}.txt"
        output.touch()
        output.chmod(0o666)
        return Process(self, {
            "run": [str(one) for one in arguments], "hooks": hooks, "output": str(output),
            "environment": {name: str(value) for name, value in environment.items()},
        })  # fmt: skip

    def run(self, *arguments: object, **options: object) -> tuple[int, str]:
        process = self.start(*arguments, **options)
        return process.wait(), process.said


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.server.stdin.close()
    server.server.wait(10)


@pytest.fixture(scope="module")
def images(smooth_images) -> Path:
    return smooth_images(3, (10, 12), (60, 72), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def train(images) -> Callable[..., tuple]:
    """The arguments of a training into a folder."""

    def arguments(root: Path, *more: object, model: str = "safmn") -> tuple:
        scale = ("--scale", 2) if model == "safmn" else ()
        return (
            "train",
            model,
            *scale,
            "--data",
            images,
            "--held-out",
            images,
            "--runs",
            root,
            "--device",
            "cpu",
            *more,
        )

    return arguments


@pytest.fixture(scope="module")
def whole(forks, train, tmp_path_factory) -> tuple[Path, float]:
    """The folder of an uninterrupted run, and how long it took."""
    root, start = tmp_path_factory.mktemp("whole"), time.monotonic()
    code, said = forks.run(*train(root))
    assert code == 0, said
    return found(root), time.monotonic() - start


def found(root: Path) -> Path:
    """The one run in a folder."""
    (run,) = root.iterdir()
    return run


def same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """Check that two runs have the same weights, log and scores, and left nothing else."""
    assert one.name == other.name
    weights = [load_file(run / "model.safetensors") for run in (one, other)]
    for key in weights[0]:
        assert (weights[0][key] - weights[1][key]).abs().max() <= tolerance, key
    for name in ("log", "validation"):
        columns = [runs.Run(run).log(name) for run in (one, other)]
        for key in columns[0].keys() - {"seconds"}:
            np.testing.assert_allclose(columns[0][key], columns[1][key], rtol=100 * tolerance, atol=0, err_msg=key)
        assert (np.diff(columns[1]["seconds"]) > 0).all(), "the time goes on where it was"
    assert [json.loads((run / "metrics.json").read_text())["collapsed_at"] for run in (one, other)] == [None, None]
    assert not [path.name for path in other.iterdir() if path.suffix in (".tmp", ".pt", ".damaged")]


def states(run: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("state-")) for path in run.glob("state-*.pt"))


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


# --- kills -----------------------------------------------------------------------------------------------------------


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(forks, train, whole, tmp_path):
    """Half of the kills come while a state is half written, half at random moments, until the run has ended."""
    seed = random.randrange(10**6)
    chance, run, kills = random.Random(seed), tmp_path / whole[0].name, []

    def halfway(process: Process, before: list[int]) -> bool:
        """Whether a state has been written since, and the next one is being written; or the run has ended."""
        writing = states(run) != before and any(run.glob(f"state-*.{process.pid}.tmp"))
        return writing or (run / "held_out.json").exists()

    for number in range(6):
        half, before = number % 2 == 0, states(run)
        process = forks.start(*train(tmp_path), hooks=("half a state",) if half else ("slow steps",))
        if half:
            until(lambda process=process, before=before: halfway(process, before))
        else:
            time.sleep(chance.uniform(0, 1.5))
        process.signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break
        assert not half or any(run.glob(f"state-*.{process.pid}.tmp"))
        kills.append(tuple(states(run)))
    print("seed", seed, "states after each kill:", kills)
    assert len(kills) > 2 and kills[0] == (4,), "the run ended too early to be killed"
    code, said = forks.run(*train(tmp_path))
    assert code == 0, said
    same(whole[0], found(tmp_path))


def test_a_kill_after_the_last_state_or_before_the_scores_is_made_up_for(forks, train, whole, tmp_path):
    """The weights are written, but neither how the run ended nor its scores."""
    run = tmp_path / whole[0].name
    process = forks.start(*train(tmp_path), hooks=("slow files",))
    until(lambda: (run / "model.safetensors").exists())
    process.signal(signal.SIGKILL)
    process.wait()
    assert not (run / "metrics.json").exists() and states(run) == [28, 32]
    code, said = forks.run(*train(tmp_path))
    assert code == 0 and "32 steps, held-out PSNR" in said
    same(whole[0], run)
    (run / "held_out.json").unlink()
    (run / "state-32.pt").write_bytes(b"left over")
    assert forks.run(*train(tmp_path))[0] == 0
    same(whole[0], run)


@pytest.fixture
def halfway(forks, train, tmp_path) -> Path:
    """The folder of a run that a signal has stopped between two states."""
    process = forks.start(*train(tmp_path), hooks=("held",))
    until(lambda: any(tmp_path.glob("*/state-12.pt")))
    process.signal(signal.SIGTERM)
    code, said = process.wait(), process.said
    run = found(tmp_path)
    assert code == 75
    assert said == f"srlib: stopped at step {states(run)[-1]}, saved; the same command goes on\n"
    assert len(states(run)) == 2 and not list(run.glob("*.tmp"))
    return run


# --- damage ----------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    """One bit of one weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def altered(path: Path, change: Callable[[dict], None]) -> None:
    parts = torch.load(path, weights_only=True)
    change(parts)
    torch.save(parts, path)


DAMAGE = {
    "cut off": cut,
    "empty": lambda path: path.write_bytes(b""),
    "no state": lambda path: path.write_bytes(b"garbage" * 1000),
    "a flipped bit": flip,
    "a part missing": lambda path: altered(path, lambda parts: parts.pop("optimizer")),
    "wrong names": lambda path: altered(path, lambda parts: parts["model"].update(more=torch.zeros(1))),
    "wrong shapes": lambda path: altered(
        path, lambda parts: parts["optimizer"]["state"][0].update(exp_avg=torch.zeros(3))
    ),
    "not finite": lambda path: altered(path, lambda parts: parts["average"]["to_feat.weight"].fill_(np.nan)),
    "another step": lambda path: altered(path, lambda parts: parts.update(step=7)),
}


def fresh() -> State:
    torch.manual_seed(1)
    return State(create("safmn", 2, SAFMNConfig(scale=2, blocks=1, channels=8)), TrainConfig(steps=9))


def stepped(folder: Path, *steps: int) -> State:
    """A state after some steps, saved at each."""
    state = fresh()
    while state.step < steps[-1]:
        state.model(torch.rand(1, 3, 8, 8)).mean().backward()
        state.optimizer.step()
        state.schedule.step()
        state.follow()
        state.step += 1
        if state.step in steps:
            States(folder).save(state, {"pending": torch.tensor([float(state.step)])})
    return state


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, capsys, damage):
    stepped(tmp_path, 2, 3)
    before = States(tmp_path).path(2).read_bytes()
    DAMAGE[damage](tmp_path / "state-3.pt")
    state = fresh()
    assert States(tmp_path).restore(state)["pending"] == 2
    told = capsys.readouterr().err
    assert told.startswith("srlib: state-3.pt is damaged (") and told.endswith("goes on from state-2.pt\n")
    assert told.count("\n") == 1 and states(tmp_path) == [2]
    assert [path.name for path in tmp_path.glob("*.damaged")] == ["state-3.pt.damaged"]
    same_parts(state.parts(), decode(before))
    DAMAGE[damage](tmp_path / "state-2.pt")
    state, anew = fresh(), fresh()
    assert States(tmp_path).restore(state) == {}
    assert capsys.readouterr().err.endswith("begins anew\n") and states(tmp_path) == []
    same_parts(state.parts(), anew.parts())
    States(tmp_path).clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        (MemoryError(), (checkpoints, "decode")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), (checkpoints, "decode")),
        (torch.OutOfMemoryError("CUDA out of memory"), (State, "restore")),
        (RuntimeError("CUDA error: unspecified launch failure"), (State, "restore")),
    ],
)
def test_a_fault_of_the_machine_is_no_damage(tmp_path, monkeypatch, fault, place):
    """Memory can be short where a file is read, all else where the state goes to its device."""

    def fails(*_: object) -> None:
        raise fault

    stepped(tmp_path, 2, 3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(*place, fails)
    with pytest.raises(type(fault)):
        States(tmp_path).restore(fresh())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def same_parts(one: object, other: object) -> None:
    if isinstance(one, dict):
        for key in one:
            same_parts(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_a_state_that_holds_code_does_not_run_it(tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    torch.save({"model": Bomb()}, tmp_path / "state-4.pt")
    assert States(tmp_path).restore(fresh()) == {}
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "exploded").exists()


def test_the_last_two_states_are_kept_and_a_good_one_before_a_collapse(tmp_path):
    state = stepped(tmp_path, 1, 2, 3, 4)
    assert states(tmp_path) == [3, 4]
    for step in range(5, 9):
        state.step = step
        States(tmp_path).save(state, {}, collapsing_at=5)
        assert states(tmp_path)[0] == 3 and len(states(tmp_path)) == min(3, step - 2)
    state.step = 9
    States(tmp_path).save(state, {})
    assert states(tmp_path) == [8, 9]


def test_a_damaged_newest_state_of_a_run_costs_steps_and_nothing_else(forks, train, whole, halfway):
    last = states(halfway)
    cut(halfway / f"state-{last[-1]}.pt")
    code, said = forks.run(*train(halfway.parent))
    assert code == 0 and "is damaged (" in said and f"goes on from state-{last[0]}.pt" in said
    assert json.loads((halfway / "provenance.json").read_text())["resumed_at"] == last[0]
    same(whole[0], halfway)


def test_rows_that_no_state_goes_with_are_dropped(forks, train, whole, halfway):
    """Whole ones, and one that was cut off in a number."""
    last = states(halfway)[-1]
    with open(halfway / "log.csv", "ab") as file:
        file.write(f"{last + 2},0.5,0.001,9.9\r\n{last + 4},0.".encode())
    assert forks.run(*train(halfway.parent))[0] == 0
    same(whole[0], halfway)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_same_command_goes_on(forks, train, whole, tmp_path, number):
    process = forks.start(*train(tmp_path), hooks=("held", "no hangup"))
    until(lambda: any(tmp_path.glob("*/state-4.pt")))
    process.signal(signal.SIGHUP)
    until(lambda: any(tmp_path.glob("*/state-12.pt")))
    process.signal(number)
    assert process.wait() == 75 and process.said.count("\n") == 1
    run = found(tmp_path)
    assert states(run) == [12, 13], "a signal that was ignored does not stop it"
    assert forks.run(*train(tmp_path))[0] == 0
    same(whole[0], run)


def test_a_second_interrupt_ends_at_once(forks, train, whole, tmp_path):
    process = forks.start(*train(tmp_path), hooks=("slow steps", "endless saves"))
    until(lambda: any(tmp_path.glob("*/state-*.tmp")))
    process.signal(signal.SIGINT)
    time.sleep(2)  # sooner it would count as the first one
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert "the same command goes on from the last saved step" in process.said and "Traceback" not in process.said
    assert not list(found(tmp_path).glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_loses_nothing(forks, train, tmp_path, number):
    """While images are decoded, and while another process has the lock."""
    decoding = forks.start(*train(tmp_path), hooks=("endless decoding",))
    until(lambda: "decoding" in decoding.said)
    decoding.signal(number)
    assert decoding.wait() == 75
    assert decoding.said == "decoding\nsrlib: stopped before the first step; the same command goes on\n"
    first = forks.start(*train(tmp_path), hooks=("endless saves",))
    until(lambda: any(tmp_path.glob("*/state-*.tmp")))
    waiting = forks.start(*train(tmp_path))
    until(lambda: "waiting" in waiting.said)
    waiting.signal(number)
    assert waiting.wait() == 75
    assert waiting.said.endswith("\nsrlib: stopped before the first step; the same command goes on\n")
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL


def test_only_torchrun_says_which_process_this_is(command, train, monkeypatch, tmp_path):
    for value in ("1", ""):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, value)
        code, out, err = command(*train(tmp_path))
        assert code == 0 and "PSNR" in out, err
        code, _, err = command("train", "nothing")
        assert code == 2 and err.startswith("srlib: ")


def test_handlers_are_those_of_the_caller_afterwards(request):
    shell = signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background lack
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, shell))
    before = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: signals.asked)
        assert signals.asked == "SIGTERM"
        with pytest.raises(Stopped, match="saved"), signals.at_once("all is saved"):
            raise AssertionError("not reached")
    assert {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS} == before
    with Signals() as signals, pytest.raises(Stopped, match="saved"):
        with signals.at_once("all is saved"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    with ThreadPoolExecutor(1) as pool:  # where Python knows no signals
        assert pool.submit(lambda: Signals().__enter__().asked).result() == ""


# --- two processes that ask for the same run -------------------------------------------------------------------------


def test_who_comes_second_waits_and_loads_the_run(forks, train, whole, tmp_path):
    go = tmp_path.with_name(f"{tmp_path.name}-go")
    first = forks.start(*train(tmp_path), hooks=("held",), GO=go)
    until(lambda: any(tmp_path.glob("*/state-4.pt")))
    second = forks.start(*train(tmp_path))
    until(lambda: "waiting" in second.said)
    code, said = forks.run(*train(tmp_path, "--no-wait"))
    run = found(tmp_path)
    held = f"{run.name} is being trained by process {first.pid} on"
    assert code == 75 and said.startswith(f"srlib: {held}") and said.endswith("leave out --no-wait\n")
    go.touch()
    assert first.wait() == second.wait() == 0
    assert said.count("\n") == 1 and second.said.startswith(f"srlib: {held}")
    assert "held-out PSNR" in first.said and "held-out PSNR" not in second.said
    assert json.loads((run / "provenance.json").read_text())["resumed_at"] == 0
    same(whole[0], run)


def test_a_finished_run_is_loaded_whoever_holds_its_lock(forks, train, whole):
    """Without a word of another process; only what must still be scored is waited for."""
    lock, scores = FileLock(whole[0] / ".lock"), whole[0] / "held_out.json"
    (whole[0] / ".holder").write_text("process 1 on elsewhere")
    with lock:
        code, said = forks.run(*train(whole[0].parent, "--no-wait"))
        assert code == 0 and said.count("\n") == 1 and "PSNR" in said
        before = json.loads(scores.read_text())
        scores.unlink()
        process = forks.start(*train(whole[0].parent, "--no-wait"))
        time.sleep(0.5)
        assert not scores.exists() and process.said == ""
    assert process.wait() == 0 and process.said.count("\n") == 1
    assert json.loads(scores.read_text()) == before


def test_who_waits_takes_over_from_one_that_is_killed(forks, train, whole, tmp_path):
    first = forks.start(*train(tmp_path), hooks=("held",))
    until(lambda: any(tmp_path.glob("*/state-8.pt")))
    second = forks.start(*train(tmp_path))
    until(lambda: "waiting" in second.said)
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and second.wait() == 0
    assert json.loads((found(tmp_path) / "provenance.json").read_text())["resumed_at"] >= 8
    same(whole[0], found(tmp_path))


# --- no room, no rights ----------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_states_as_they_are(forks, train, whole, halfway):
    """A limit on the size of files says what a full disk does."""
    before = {step: (halfway / f"state-{step}.pt").read_bytes() for step in states(halfway)}
    code, said = forks.run(*train(halfway.parent), hooks=("small files",))
    assert code == 2 and said.count("\n") == 1 and "cannot write" in said and "as it was" in said
    assert {step: (halfway / f"state-{step}.pt").read_bytes() for step in states(halfway)} == before
    assert not list(halfway.glob("*.tmp"))
    assert forks.run(*train(halfway.parent))[0] == 0
    same(whole[0], halfway)


@pytest.mark.parametrize(
    ("number", "of", "said"),
    [
        (errno.EINVAL, "folder", ""),
        (errno.ENOTSUP, "folder", ""),
        (errno.EIO, "folder", "cannot write"),
        (errno.EINVAL, "file", "cannot write"),
    ],
)
def test_a_disk_that_cannot_synchronise_folders_is_no_failure(tmp_path, monkeypatch, number, of, said):
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (of == "folder"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        checkpoints.write(tmp_path / "file", b"content")
    assert [path.name for path in tmp_path.iterdir()] == (["file"] * (of == "folder"))


def test_a_small_disk_that_fills_up_is_one_line(forks, train, tmp_path):
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path]).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        code, said = forks.run(*train(tmp_path))
        assert code == 2 and said.count("\n") == 1 and "No space left on device" in said
        assert not list(tmp_path.glob("*/*.tmp"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_may_not_be_written_to_is_one_line(forks, train, halfway):
    """Root, for whom modes count nothing, has it mounted read-only."""
    before = {path.name: path.read_bytes() for path in halfway.iterdir() if path.is_file()}
    if not os.getuid():
        for options in (("--bind", halfway), ("-o", "remount,ro,bind")):
            if subprocess.run(["mount", *options, halfway]).returncode:
                pytest.skip("this root may not mount a folder read-only")
    halfway.chmod(0o555) if os.getuid() else None
    try:
        code, said = forks.run(*train(halfway.parent))
    finally:
        halfway.chmod(0o755) if os.getuid() else subprocess.run(["umount", halfway], check=True)
    assert code == 2 and said.count("\n") == 1 and "cannot write" in said
    assert {path.name: path.read_bytes() for path in halfway.iterdir() if path.is_file()} == before


# --- several processes -----------------------------------------------------------------------------------------------


def together(forks: Forks, *arguments: object, **options: object) -> list[Process]:
    """Two processes with what torchrun gives those that it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    return [
        forks.start(*arguments, RANK=rank, LOCAL_RANK=rank, TORCHELASTIC_RUN_ID="test", **shared, **options)
        for rank in range(2)
    ]


def test_two_processes_train_the_run_of_one(forks, train, tmp_path):
    """The same batches, cut in two; the first process alone prints and writes. A signal to the second stops both, and
    both go on."""
    assert forks.run(*train(tmp_path / "one", "--ablation"))[0] == 0
    both = train(tmp_path / "two", "--ablation")
    first, second = together(forks, *both, hooks=("held",), GO=tmp_path / "go")
    until(lambda: any(tmp_path.glob("two/*/state-8.pt")))
    second.signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert first.wait() == second.wait() == 75, first.said + second.said
    run = found(tmp_path / "two")
    assert first.said == f"srlib: stopped at step {states(run)[-1]}, saved; the same command goes on\n"
    assert second.said == ""
    two, again = together(forks, *both)
    assert two.wait() == again.wait() == 0, two.said + again.said
    assert "20 steps, held-out PSNR" in two.said and again.said == ""
    assert json.loads((run / "provenance.json").read_text())["processes"] == 2
    same(found(tmp_path / "one"), run, tolerance=1e-5)


def test_two_processes_share_the_noise_of_one(forks, train, tmp_path):
    """MoEISR's Gumbel noise is drawn for the whole batch, and its balance loss is a mean over images."""
    code, said = forks.run(*train(tmp_path / "one", model="moeisr-lte-s-edsr"))
    assert code == 0, said
    both = together(forks, *train(tmp_path / "two", model="moeisr-lte-s-edsr"))
    assert [process.wait() for process in both] == [0, 0], both[0].said + both[1].said
    same(found(tmp_path / "one"), found(tmp_path / "two"), tolerance=1e-5)


@pytest.mark.parametrize("model", ["seemore-t", "ssiu"])
def test_two_processes_train_other_networks_as_one_does(forks, train, tmp_path, model):
    """Also where each takes other experts."""
    code, said = forks.run(*train(tmp_path / "one", "--scale", 2, model=model))
    assert code == 0, said
    both = together(forks, *train(tmp_path / "two", "--scale", 2, model=model))
    assert [process.wait() for process in both] == [0, 0], both[0].said + both[1].said
    same(found(tmp_path / "one"), found(tmp_path / "two"), tolerance=1e-5)


def test_what_two_processes_would_do_otherwise_is_refused(forks, train, tmp_path):
    both = together(forks, *train(tmp_path, "--table", "3", "--row", "LN -> BN"))
    assert [process.wait() for process in both] == [2, 2]
    assert "train this network in one process" in both[0].said and both[1].said == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here, which lists torchrun's processes")
def test_the_death_of_one_ends_the_others(train, images, tmp_path):
    """Under torchrun itself, with a real kill."""
    script = tmp_path / "tiny.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import forks; forks.tiny(); forks.slow_steps(0.2); "
        "from srlib import cli; cli.main()"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"SRLIB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said.txt", "w+") as output:
        run = subprocess.Popen(
            [*command, script, *map(str, train(tmp_path / "runs"))], stdout=output, stderr=output, env=environment
        )
        try:
            until(lambda: any((tmp_path / "runs").glob("*/state-4.pt")), 60)
            workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            start = time.monotonic()
            os.kill(int(workers[-1]), signal.SIGKILL)
            assert run.wait(60) != 0 and time.monotonic() - start < 60
        finally:
            run.kill()
        output.seek(0)
        said = output.read()
    assert "another of the 2 processes is gone; the same command goes on from the last saved step" in said
    assert "srlib" in said and states(found(tmp_path / "runs"))
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


# --- collapse --------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys, in_process, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Run srlib in this process, with tiny trainings."""
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    for name in ("smoke", "paper"):
        tiny = runs.Budget(name, 40, 40, batch=2, patch=8, ema_decay=0.5, meaning="for tests")
        monkeypatch.setitem(runs.BUDGETS, name, tiny)
    monkeypatch.setattr(runs.Rhythm, "of", classmethod(lambda cls, steps: cls(1, 2, 20)))
    monkeypatch.setitem(safmn.CONFIGS, "safmn", SAFMNConfig(blocks=1, channels=16))

    return in_process(capsys)


def collapsing(monkeypatch, at: int, to: float) -> None:
    """Have the loss of each step from ``at`` on be so many times what it is, as a training that collapses has it; the
    weights are what they are."""
    count = iter(range(1, 10**6))

    def collapsing_objective(config: TrainConfig) -> Callable:
        objective = make_objective(config)
        return lambda network, batch: objective(network, batch) * (to if next(count) >= at else 1)

    monkeypatch.setattr(runs, "make_objective", collapsing_objective)


@pytest.mark.parametrize(("at", "to", "reason"), [(21, 50.0, "2 times its median"), (22, np.inf, "not finite")])
def test_a_collapse_keeps_the_last_good_weights_and_reaches_the_table(
    command, train, images, monkeypatch, tmp_path, at, to, reason
):
    """From the training of Table 3's row to its cell. States saved while the loss was high are no good ones, nor is the
    one whose weights gave the first high loss."""
    collapsing(monkeypatch, at, to)
    saved, save = {}, States.save

    def keep(self: States, state: State, *more: object) -> None:
        saved[state.step] = {key: value.clone() for key, value in state.average.state_dict().items()}
        save(self, state, *more)

    monkeypatch.setattr(States, "save", keep)
    label, record = "LN -> None, lr=1x10^-3 *", tmp_path / "row.json"
    arguments = train(
        tmp_path / "runs", "--table", 3, "--row", label, "--budget", "paper", "--record", record, "--json"
    )
    code, out, err = command(*(4 if one == 2 else one for one in arguments))
    assert code == 0, err
    run = runs.Run(found(tmp_path / "runs"))
    (figures,) = json.loads(out)
    assert figures["run"] == run.folder.name and figures["collapsed_at"] == at
    assert run.ending == f"collapsed at step {at}" and f"collapsed at step {at}" in err
    good = max(step for step in saved if step < at - 1)
    assert reason in run.metrics["collapse"] and run.metrics["weights_at"] == good
    kept = load_file(run.folder / "model.safetensors")
    assert all(torch.equal(kept[key], saved[good][key]) for key in kept)
    assert not list(run.folder.glob("state-*"))

    home = tmp_path / "benchmark" / "DIV2K_val" / "HR"
    shutil.copytree(images, home)
    results = tmp_path / "results"
    code, _, err = command(
        "evaluate", "--record", record, "--runs", tmp_path / "runs", "--data", "DIV2K_val", "--data-root", tmp_path,
        "--device", "cpu", "--out", results / "row.json",
    )  # fmt: skip
    assert code == 0, err
    cell = papers.table("safmn", 3, counts=False, records=results).cell(label, "psnr", dataset="DIV2K_val")
    assert cell.ours is not None and f"collapsed at step {at}, protocol safmn" in cell.note


def test_weights_that_are_not_finite_never_take_the_place_of_good_ones(command, train, monkeypatch, tmp_path):
    """In the last step, whose weights no loss looks at any more."""
    look = runs.Session.on_step

    def poison(self: runs.Session, state: State, loss: torch.Tensor) -> None:
        look(self, state, loss)
        if state.step == 40:
            next(state.model.parameters()).data[0] = np.nan

    monkeypatch.setattr(runs.Session, "on_step", poison)
    code, _, err = command(*train(tmp_path / "runs"))
    assert code == 0, err
    run = runs.Run(found(tmp_path / "runs"))
    assert run.metrics["collapsed_at"] == 40 and run.metrics["weights_at"] == 38
    assert all(value.isfinite().all() for value in run.network().state_dict().values())


def test_a_collapse_is_the_same_whether_interrupted_or_not(command, train, monkeypatch, tmp_path):
    """Stopped in the middle of the high rows: the watch goes on where it was, and the good state is still there."""
    ends = []
    for name, stop in (("whole", 0), ("parts", 25)):
        collapsing(monkeypatch, 21, 50.0)
        if stop:
            look = runs.Session.on_step

            def on_step(self: runs.Session, state: State, loss: torch.Tensor, stop: int = stop, look=look) -> None:
                if state.step == stop:
                    self.signals.asked = "SIGTERM"
                look(self, state, loss)

            monkeypatch.setattr(runs.Session, "on_step", on_step)
            code, _, err = command(*train(tmp_path / name))
            assert code == 75 and "stopped at step 25, saved" in err
            assert states(found(tmp_path / name))[-2:] == [24, 25] and states(found(tmp_path / name))[0] < 20
            monkeypatch.setattr(runs.Session, "on_step", look)
        code, out, err = command(*train(tmp_path / name, "--csv"))
        assert code == 0, err
        run = runs.Run(found(tmp_path / name))
        ends.append((run.metrics, run.log()["loss"].tolist(), load_file(run.folder / "model.safetensors")))
        assert next(csv.DictReader(io.StringIO(out)))["collapsed_at"] == "21"
    same_parts(ends[0][2], ends[1][2])
    assert ends[0][:2] == ends[1][:2]


@pytest.mark.parametrize("place", ["loss", "weights"])
def test_a_signal_does_not_change_the_step_of_a_collapse(command, train, monkeypatch, tmp_path, place):
    """It comes between two rows of the log, after the step whose loss, or whose new weights, are not finite."""
    monkeypatch.setattr(runs.Rhythm, "of", classmethod(lambda cls, steps: cls(4, 8, 40)))
    look, ends = runs.Session.on_step, []
    for name in ("whole", "asked"):
        collapsing(monkeypatch, 22 if place == "loss" else 100, np.inf)

        def on_step(self: runs.Session, state: State, loss: torch.Tensor, name: str = name) -> None:
            if state.step == 22 and place == "weights":
                next(state.model.parameters()).data[0] = np.nan
            if state.step == 22 and name == "asked":
                self.signals.asked = "SIGTERM"
            look(self, state, loss)

        monkeypatch.setattr(runs.Session, "on_step", on_step)
        code, _, err = command(*train(tmp_path / name))
        assert code == (75 if name == "asked" else 0), err  # the signal ends the scoring
        run = runs.Run(found(tmp_path / name))
        ends.append((run.metrics, run.log()["step"].tolist(), load_file(run.folder / "model.safetensors")))
    assert ends[0][:2] == ends[1][:2] and ends[0][0]["collapsed_at"] == (22 if place == "loss" else 23)
    assert ends[0][0]["weights_at"] == 16
    same_parts(ends[0][2], ends[1][2])


def test_the_smoke_runs_of_the_book_are_none_that_the_watch_ends():
    logs = sorted((HERE.parent / "runs").glob("*/log.csv"))
    if not logs:
        pytest.skip("no runs here: `make book` trains them")
    for path in logs:
        if (path.parent / "metrics.json").exists() and runs.Run(path.parent).metrics["collapsed_at"] is None:
            watch, rows = Watch(), runs.Run(path.parent).log()["loss"].tolist()
            for number, loss in enumerate(rows, 1):
                watch.look(number, [loss], number == len(rows))
                assert watch.high < 2, path


def test_json_and_csv_at_once_are_refused_and_help_names_both_launchers(command):
    assert command("train", "safmn", "--json", "--csv")[0] == 2
    code, out, _ = command("train", "--help")
    assert code == 0 and "srlib train seemore-t" in out and "torchrun --nproc-per-node 2 -m srlib train" in out


def test_a_file_system_without_locks_is_said(command, train, monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "FileLock", SoftFileLock)
    code, _, err = command(*train(tmp_path))
    assert code == 0 and "is on a file system without locks: after a kill -9, delete" in err

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(SoftFileLock, "acquire", refused)
    code, _, err = command(*train(tmp_path / "again"))
    assert code == 2 and "No locks available" in err and err.count("\n") == 1


def test_the_parts_of_a_step_are_told_apart(images, tmp_path):
    """The range of each part is there, and they make up the step."""
    store = Store.open(folder(images), cache=tmp_path)
    config = runs.configure("safmn", 2, store, network=SAFMNConfig(scale=2, blocks=1, channels=16))
    config = replace(config, train=replace(config.train, batch=2, patch=8))
    found = profiling.step_time(config, store, steps=4, warmup=2)
    assert tuple(found.parts) == profiling.PARTS and found.steps == 4
    assert all(found.parts[name] > 0 for name in profiling.PARTS)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert 0 < found.outside < 1
    assert found.outside == pytest.approx(1 - found.share("forward", "backward", "optimiser"))
    with pytest.raises(InputError, match="cannot be timed"):
        profiling.step_time(config, store, steps=0)
