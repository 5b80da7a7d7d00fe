"""The one error that bad input raises."""


class InputError(ValueError):
    """Bad input: a missing file, a wrong scale, an unknown name.

    The message is one line that says what is wrong and how to mend it. The command line prints it and exits with code
    2.
    """
