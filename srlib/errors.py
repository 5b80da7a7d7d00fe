"""How a command ends that can't do its work, by bad input or for now, and what it says on the way."""

import sys


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
