"""How work ends that can't be done: by bad input, or for now."""

from pathlib import Path


class InputError(ValueError):
    """Bad input: a missing file, a wrong scale, an unknown name.

    The message is one line that says what is wrong and how to mend it, whatever breaks of lines a name or a decoder's
    word that it repeats may hold. The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class Stopped(KeyboardInterrupt):
    """A training that ended before its time and lost nothing: the same command goes on where it stopped.

    By a signal (Ctrl-C, SIGTERM), because another process trains that run and nobody wants to wait, or because another
    of the processes that train it together is gone. The message is one line; the command line prints it and exits with
    code 75 (EX_TEMPFAIL of sysexits.h: try again later).
    """


def expanded(path: str | Path) -> Path:
    """A path with a leading ~ put in full; InputError where nobody has that home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path} starts with ~, but there is no such home folder: give the path in full") from None
