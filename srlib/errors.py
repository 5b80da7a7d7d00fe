"""How a command ends that can't do its work, by bad input or for now; what it says; how it writes files."""

import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path


class InputError(ValueError):
    """Bad input, such as a missing file, a wrong scale or an unknown name.

    The message is one line that says what is wrong and how to mend it. The command line prints it and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class Stopped(KeyboardInterrupt):
    """A training that a signal, another process or a lock stopped; the same command resumes it.

    The command line prints the message, one line, and exits with 75 (EX_TEMPFAIL of sysexits.h: try again later).
    """


def say(*lines: str) -> None:
    """Print each on one line of standard error; standard output is for results."""
    for line in lines:
        print("srlib:", " ".join(line.splitlines()), file=sys.stderr, flush=True)


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that the old one is there or the new one, whole, whenever the process is killed or power is lost,
    and whoever else writes it. Raises InputError where it cannot be written."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"cannot write {path} ({error.strerror}): make room, or choose another folder") from error
