"""Real processes without their start: this one imports srlib once, and forks itself for each command that it gets.

It reads JSON lines, {"run": [...arguments of srlib], "environment": {}, "hooks": [], "output": FILE} or {"wait": PID},
and answers each with a line: the new process's number, or the exit code (-9 for one that was killed). Trainings are
tiny: 32 steps of patches of 8x8 pixels, with a state every 4 steps.
"""

import json
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.utils.tensorboard  # noqa: F401, as loading it takes longer than a tiny training

from srlib import checkpoints, cli, data, runs
from srlib.models import safmn, seemore, ssiu
from srlib.models.encoders import EDSR, ENCODERS

STEPS = 32


def tiny() -> None:
    """Make all trainings tiny, for the process that calls this."""
    budget = runs.Budget("smoke", STEPS, 20, batch=2, patch=8, ema_decay=0.9, meaning="for tests", own={
        "moeisr-lte-s-edsr": {"steps": 20, "queries": 40, "lr": 1e-3}, "seemore-t": {"steps": 4}, "ssiu": {"steps": 4},
    })  # fmt: skip
    runs.BUDGETS["smoke"] = budget
    runs.BUDGETS["paper"] = budget
    runs.Rhythm.of = classmethod(lambda cls, steps: cls(2, 4, 16))
    safmn.CONFIGS["safmn"] = safmn.SAFMNConfig(blocks=2, channels=16)
    seemore.CONFIGS["seemore-t"] = seemore.SeemoReConfig(groups=1, channels=8)
    ssiu.CONFIGS["ssiu"] = ssiu.SSIUConfig(stages=3, channels=8)
    ENCODERS["edsr"] = partial(EDSR, blocks=1)


class Halting:
    """A file whose content arrives in two halves, with a pause between them."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __enter__(self) -> "Halting":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        time.sleep(0.02)
        self.file.write(content[len(content) // 2 :])


def endless_saves() -> None:
    """Let a state take for ever to be written."""
    Halting.write = lambda self, content: (self.file.write(b"half"), self.file.flush(), time.sleep(60))
    checkpoints.open = lambda path, *a: Halting(open(path, *a)) if "state-" in str(path) else open(path, *a)


def half_a_state() -> None:
    """Write the second state by half, and no more."""
    names = set()

    def opened(path: Path, *arguments: object) -> object:
        names.update([str(path)] if "state-" in str(path) else [])
        return (endless_saves() or checkpoints.open(path, *arguments)) if len(names) == 2 else open(path, *arguments)

    checkpoints.open = opened


def held() -> None:
    """Let step 13 wait for a signal, or for the file that the environment names."""
    look = runs.Session.on_step

    def on_step(self: runs.Session, state: object, *arguments: object) -> None:
        while state.step == 13 and not self.signals.asked and not Path(os.environ.get("GO", "nowhere")).exists():
            time.sleep(0.002)
        look(self, state, *arguments)

    runs.Session.on_step = on_step


def endless_decoding() -> None:
    """Let images take for ever to be decoded."""
    data.Store.open = lambda *_: (print("decoding", flush=True), time.sleep(60))


def slow_steps(seconds: float) -> None:
    """Let each step take at least so long."""
    look = runs.Session.on_step

    def on_step(self: runs.Session, *arguments: object) -> None:
        time.sleep(seconds)
        look(self, *arguments)

    runs.Session.on_step = on_step


HOOKS = {
    "slow files": lambda: setattr(checkpoints, "open", lambda *a, **k: Halting(open(*a, **k))),
    "slow steps": lambda: slow_steps(0.06),
    "endless saves": endless_saves,
    "half a state": half_a_state,
    "held": held,
    "endless decoding": endless_decoding,
    "small files": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    "no hangup": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
}


def work(job: dict) -> None:
    """What a forked process does."""
    sys.stdin.close()
    out = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(out, number)
    os.environ |= job.get("environment", {})
    torch.set_num_threads(1)
    tiny()
    for name in job.get("hooks", []):
        HOOKS[name]()
    sys.argv = ["srlib", *job["run"]]
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        print(f"traceback: {error!r}", file=sys.stderr)
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(Path(__file__).name, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
            continue
        if (child := os.fork()) == 0:
            work(job)
        print(child, flush=True)


if __name__ == "__main__":
    main()
