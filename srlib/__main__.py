"""``python -m srlib`` is the ``srlib`` command."""

from srlib.cli import app

if __name__ == "__main__":
    app(prog_name="srlib")
