"""Help, version, documentation, start-up, and how the command behaves towards terminals and pipes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kleinbild import __version__
from kleinbild.cli.app import EXIT_CODES
from kleinbild.cli.handbook import pages
from kleinbild.cli.main import run
from kleinbild.cli.terminal import result_table
from tests.integration.command import KLEINBILD, environment, kleinbild

ROOT = Path(__file__).parents[2]
VERBS = ("generate", "edit", "info", "models", "pull", "doctor", "plan", "nano")


def test_help_fits_a_terminal_and_names_every_verb_and_exit_code(tmp_path: Path) -> None:
    result = kleinbild("--help", cwd=tmp_path)
    assert (result.code, result.stderr) == (0, "")
    assert len(result.lines) <= 45
    assert max(map(len, result.lines)) <= 80
    words = result.stdout.decode().split()
    assert all(verb in words for verb in VERBS)
    assert all(str(code) in words for code in EXIT_CODES)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["help"]])
def test_other_ways_to_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    wanted = capsys.readouterr().out
    assert run(arguments) == 0
    assert capsys.readouterr().out == wanted


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "edit"]) == 0
    assert "kleinbild edit [OPTIONS]" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr() == (f"kleinbild {__version__}\n", "")


def test_the_page_about_the_command_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == pages(), (
        "run python -m kleinbild.cli.handbook > docs/cli.md"
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["models"], ["models", "--json"], ["info", "x"], ["generate", ""]]
)
def test_what_makes_no_picture_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    program = "import sys; from kleinbild.cli.main import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}
    assert "kleinbild" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "safetensors", "diffusers", "huggingface_hub"})


def test_models_lists_name_licence_and_whereabouts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEINBILD_HOME", "/nowhere")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    assert run(["models"]) == 0
    told = capsys.readouterr()
    line = next(line for line in told.out.splitlines() if line.startswith("klein-9b "))
    assert line.split()[1:8] == ["34.7", "GB", "FLUX", "Non-Commercial", "License", "not", "here"]
    assert "kleinbild pull" in told.err

    assert run(["models", "--json"]) == 0
    known = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert known["klein-4b"]["licence"] == "Apache-2.0"
    assert known["klein-4b"]["path"] is None


def test_a_table_is_one_line_a_row_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    result_table(["name", "size"], [("x" * 300, "1"), ("[red]", "22")], numbers=["size"])
    assert capsys.readouterr().out.splitlines() == [
        "name" + " " * 298 + "size",
        "x" * 300 + "  " + "   1",
        "[red]" + " " * 297 + "  22",
    ]


def on_a_terminal(*arguments: str, cwd: Path, **variables: str) -> str:
    """What the command writes where stderr is a terminal."""
    main, side = pty.openpty()
    command = [*KLEINBILD, *arguments]
    subprocess.run(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=side, env=environment(**variables), timeout=60, check=False
    )
    os.close(side)
    written = b""
    while True:
        try:
            chunk = os.read(main, 65_536)
        except OSError:  # the other side is closed: all has been read
            break
        if not chunk:
            break
        written += chunk
    os.close(main)
    return written.decode()


def test_errors_are_red_on_a_terminal_unless_no_color_is_set(tmp_path: Path) -> None:
    red = "\x1b[1;31merror: "
    assert red in on_a_terminal("info", "missing.png", cwd=tmp_path)
    plain = on_a_terminal("info", "missing.png", cwd=tmp_path, NO_COLOR="1")
    assert "error: " in plain
    assert "31m" not in plain
    assert "\x1b" not in kleinbild("info", "missing.png", cwd=tmp_path).stderr
