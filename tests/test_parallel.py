"""Who trains a run, and until when: signals save it, a lock keeps others off, several processes train it as one."""

from __future__ import annotations

import os
import signal
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import tiny
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from srlib.data import Store
from srlib.errors import InputError
from srlib.parallel import launch, lock, part, pick_device, signals


@pytest.fixture
def store(make_images, tmp_path) -> Store:
    return Store.open(str(make_images(tmp_path / "images", 2, (40, 48))), cache=tmp_path / "cache")


def run_folder(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


def test_a_signal_saves_the_run_and_the_same_call_resumes_it(store, tmp_path):
    whole = tiny.train(store, tmp_path / "whole")
    process = tiny.fork(lambda: tiny.train_slowly(store, tmp_path / "runs", tmp_path / "go"), tmp_path / "said")
    tiny.until(lambda: any((tmp_path / "runs").glob("*/state-*.pt")))
    os.kill(process.pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    assert tiny.ended(process) == 75
    step = max(int(path.stem[6:]) for path in run_folder(tmp_path / "runs").glob("state-*.pt"))
    assert (tmp_path / "said").read_text() == f"stopped at step {step}, saved; the same command resumes\n"
    resumed = tiny.train(store, tmp_path / "runs")
    assert resumed.provenance["resumed_at"] == step
    weights = [load_file(run.folder / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert resumed.log().drop(columns="seconds").equals(whole.log().drop(columns="seconds"))


def test_signals_are_noted_and_handlers_put_back():
    before, usual = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with signals() as asked:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not asked, "one that is ignored stays so"
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == ["SIGTERM"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    for number in (signal.SIGINT, signal.SIGUSR1):
        with signals() as asked:
            os.kill(os.getpid(), number)
            assert asked == [number.name]
    assert signal.getsignal(signal.SIGTERM) == before
    signal.signal(signal.SIGHUP, usual)


def test_two_processes_train_one_run_once(store, tmp_path):
    root = tmp_path / "runs"
    first = tiny.fork(lambda: tiny.train_slowly(store, root, tmp_path / "go"), tmp_path / "first")
    tiny.until(lambda: any(root.glob("*/state-*.pt")))
    second = tiny.fork(lambda: tiny.train(store, root), tmp_path / "second")
    impatient = tiny.fork(lambda: tiny.train(store, root, wait=False), tmp_path / "impatient")
    assert tiny.ended(impatient) == 75
    tiny.until(lambda: any(said.stat().st_size for said in tmp_path.glob("second")))
    (tmp_path / "go").touch()
    assert tiny.ended(first) == tiny.ended(second) == 0
    name = run_folder(root).name
    assert (tmp_path / "impatient").read_text().startswith(f"another process trains {name}: try again later")
    assert (tmp_path / "first").read_text() == ""
    assert (tmp_path / "second").read_text() == f"srlib: another process trains {name}: waiting for it\n"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="cannot write to .* choose another folder"),
        lock(Fabric(accelerator="cpu", devices=1), tmp_path / "file" / "run", wait=True),
    ):
        pass


def together(work, tmp_path: Path) -> list[int | None]:
    """The exit codes of two processes with what torchrun gives those that it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = []
    for rank in "01":
        own = shared | {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "test"}
        processes.append(tiny.fork(work, tmp_path / f"said-{rank}", own))
    return [tiny.ended(process) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["safmn", "seemore-t"])
def test_two_processes_train_the_run_of_one(store, tmp_path, model):
    """Each makes half of each batch, and may choose other experts; a signal to one stops both, and both resume."""
    settings = {} if model == "safmn" else {"model": model, "network": None, "steps": 4}
    one = tiny.train(store, tmp_path / "one", **settings)

    def work(stop: bool) -> None:
        if stop and os.environ["RANK"] == "1":
            tiny.after_each_step(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None)
        tiny.train(store, tmp_path / "two", **settings)
        backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(days=7), "the second waits as long as the first one scores"

    if model == "safmn":
        assert together(lambda: work(stop=True), tmp_path) == [75, 75]
        assert (tmp_path / "said-0").read_text() == "stopped at step 10, saved; the same command resumes\n"
        assert (tmp_path / "said-1").read_text() == ""
    codes = [code for _ in range(2) for code in together(lambda: work(stop=False), tmp_path)]
    assert codes == [0, 0, 0, 0], [(tmp_path / f"said-{rank}").read_text() for rank in "01"]
    folder = run_folder(tmp_path / "two")
    expected, found = (load_file(run / "model.safetensors") for run in (one.folder, folder))
    assert all((expected[key] - found[key]).abs().max() < 1e-5 for key in expected)
    assert type(one)(folder).provenance["processes"] == 2
    assert type(one)(folder).log()["loss"].to_numpy() == pytest.approx(one.log()["loss"].to_numpy(), rel=1e-3)


def test_a_batch_is_cut_into_equal_parts(monkeypatch):
    class Second:
        world_size, global_rank = 2, 1

    assert part(Second(), 8) == slice(4, 8)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a batch of 5 has no 2 equal parts"):
        part(Second(), 5)  # type: ignore[arg-type]
    monkeypatch.setenv("SLURM_NTASKS", "2")  # without torchrun each task of a Slurm job is a process by itself
    assert part(launch("cpu", "32-true"), 5) == slice(0, 5)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    for device in ("cuda", "tpu"):
        with pytest.raises(InputError, match="cpu"):
            pick_device(device)
