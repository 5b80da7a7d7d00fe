"""Help: every command has an example on one line, which its parser takes, and which works where it is quick."""

import re
import sys
from typing import Any

import pytest
import typer

from srlib import cli

COLUMNS = 80


def commands() -> dict[str, Any]:
    """Every command by the words that call it, those of groups included."""
    found: dict[str, Any] = {}

    def walk(command: Any, words: str) -> None:
        if hasattr(command, "commands"):
            for name, below in command.commands.items():
                walk(below, f"{words} {name}".strip())
        else:
            found[words] = command

    walk(typer.main.get_command(cli.app), "")
    return found


COMMANDS = commands()
WORKING = ("evaluate", "upscale", "table", "tables", "complexity", "speed", "data list", "weights", "doctor")
PRINTING = ("train", "evaluate", "upscale", "table", "complexity", "speed", "data list", "data check", "doctor")
PRINTING += ("weights", "keep")


def example(words: str) -> list[str]:
    """The arguments of a command's example, as its help prints it."""
    command = COMMANDS[words]
    with command.make_context(words, [], resilient_parsing=True, terminal_width=COLUMNS) as context:
        text = command.get_help(context)
    lines = [line.strip() for line in text.splitlines()]
    (line,) = [line for line in lines if line.startswith("Example:")]
    following = lines[lines.index(line) + 1] if lines.index(line) + 1 < len(lines) else ""
    assert not following, f"the example of {words} is broken into lines: make it shorter"
    found = re.fullmatch(r"Example: srlib (.+)", line)
    assert found, line
    return found[1].split()


def test_the_commands_are_those_that_are_promised():
    promised = {"train", "evaluate", "upscale", "table", "complexity", "weights", "keep", "doctor"}
    promised |= {"data list", "data check", "data get"}
    assert promised <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_the_example_stands_on_one_line_and_is_taken(words):
    arguments = example(words)
    name = words.split()
    assert arguments[: len(name)] == name
    with COMMANDS[words].make_context(words, arguments[len(name) :]) as context:
        assert not context.args


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_says_what_it_is_for(words):
    for parameter in COMMANDS[words].params:
        if parameter.name != "help":
            assert getattr(parameter, "help", ""), f"{words} {parameter.name}"


@pytest.mark.parametrize("words", WORKING)
def test_the_example_works(words, monkeypatch, capsys, tmp_path):
    """What takes long is shortened: one small table, one call in place of a measurement, no costs."""
    from PIL import Image

    from srlib import complexity, doctor, papers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLIB_DATA", raising=False)
    Image.new("RGB", (8, 6)).save("photo.jpg")
    if words == "tables":
        monkeypatch.setattr(papers, "tables", lambda: [("safmn", 2)])
    monkeypatch.setattr(doctor, "costs", lambda _: [doctor.Cost("as it should be", "", 30.0, 0.8)])

    def once(call, device):
        call()
        return complexity.Units(1.0, 1.0, 1.0, 1, 0.01, "one call")

    monkeypatch.setattr(complexity, "in_units", once)
    small = {"3": "2"} if words == "table" else {}
    monkeypatch.setattr(sys, "argv", ["srlib", *(small.get(word, word) for word in example(words))])
    cli.main()
    out, err = capsys.readouterr()
    assert out.strip() and not err


@pytest.mark.parametrize("words", PRINTING)
def test_what_prints_figures_prints_json_and_csv(words):
    assert {"--json", "--csv"} <= {option for parameter in COMMANDS[words].params for option in parameter.opts}
