"""Whatever is wrong: the documented exit code, two lines on stderr, nothing on stdout, no file left behind."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from kleinbild.cli.main import run
from kleinbild.model import catalog
from tests.integration.command import kleinbild, with_stdout

PROMPT = "a red cat on a beach"
FULL = Path("/dev/full")
OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "KLEINBILD_HOME": "/nowhere/kleinbild", "HF_HOME": "/nowhere/hub"}


def encoded(size: tuple[int, int], mode: str = "RGB", colour: str | int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are given as pictures, few of them rightly."""
    folder = tmp_path_factory.mktemp("pictures")
    good = encoded((64, 64))
    files = {
        "good.png": good,
        "truncated.png": good[: len(good) // 2],
        "text.png": b"no picture\n",
        "empty.png": b"",
        "hole.png": encoded((32, 32), "RGBA"),
        "opaque.png": encoded((64, 64), "LA", "white"),
        "one-pixel.png": encoded((1, 1)),
        "hundred-megapixels.png": encoded((10_000, 10_000), "1"),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


EDIT = ["edit", PROMPT, "-i", "{pictures}/good.png"]
WRONG = {
    # name: (arguments, exit code, what the first line says, what the second says)
    "no prompt": (["generate"], 2, "there is no prompt", "for example"),
    "empty prompt": (["generate", ""], 2, "prompt is empty", "say what"),
    "blank prompt": (["generate", "  \n"], 2, "prompt is empty", "say what"),
    "prompt that is no text": (["generate", b"caf\xe9 in the snow"], 2, "not valid text", "locale"),
    "prompt without quotes": (["a", "red", "cat"], 2, "extra argument", "quotes"),
    "unknown option": (["generate", PROMPT, "--sed", "3"], 2, "No such option: --sed", "--seed"),
    "option without value": (["nano", "eval", "--count"], 2, "--count", "--help"),
    "unknown way to offload": (["generate", PROMPT, "--offload", "all"], 2, "'all' is not a way", "components"),
    "mistyped command": (["genrate"], 2, "no command 'genrate'", "kleinbild generate"),
    "beginning of a command": (["doc"], 2, "no command 'doc'", "kleinbild doctor"),
    "unknown subcommand": (["models", "chek"], 2, "chek", "models --help"),
    "seed in letters": (["generate", PROMPT, "--seed", "abc"], 2, "--seed 'abc'", "--seed"),
    "negative seed": (["generate", PROMPT, "--seed", "-1"], 2, "--seed '-1'", "--seed"),
    "huge seed": (["generate", PROMPT, "--seed", str(2**63)], 2, str(2**63 - 1), "--seed"),
    "no steps": (["generate", PROMPT, "--steps", "0"], 2, "--steps '0'", "--steps"),
    "no pictures": (["generate", PROMPT, "-n", "0"], 2, "-n '0'", "-n"),
    "guidance in letters": (["generate", PROMPT, "--guidance", "much"], 2, "'much'", "leave it out"),
    "guidance that is no number": (["generate", PROMPT, "--guidance", "nan"], 2, "'nan'", "leave it out"),
    "guidance for a distilled model": (["generate", PROMPT, "--guidance", "3"], 2, "distilled", "base model"),
    "size zero": (["generate", PROMPT, "--size", "0x0"], 2, "0x0", "nearest"),
    "size beyond the range": (["generate", PROMPT, "--size", "4096x4096"], 2, "256", "256x256"),
    "size in words": (["generate", PROMPT, "--size", "large"], 2, "'large' is not a size", "128x96"),
    "aspect in words": (["generate", PROMPT, "--aspect", "wide"], 2, "'wide'", "3:2"),
    "extreme aspect": (["generate", PROMPT, "--aspect", "100:1"], 2, "extreme", "8:1"),
    "size and aspect": (["generate", PROMPT, "--size", "64x64", "--aspect", "3:2"], 2, "both", "one of them"),
    "unknown format": (["generate", PROMPT, "--format", "gif"], 2, "'gif'", "png, jpeg, webp"),
    "picture for generate": (["generate", PROMPT, "-i", "cat.png"], 2, "words alone", "kleinbild edit"),
    "edit of nothing": (["edit", PROMPT], 2, "--image", "edit --help"),
    "missing picture": (["edit", PROMPT, "-i", "missing.png"], 2, "missing.png", "check the path"),
    "folder as picture": (["edit", PROMPT, "-i", "{pictures}"], 2, "is a folder", "picture in it"),
    "mask without a picture": (["generate", PROMPT, "--mask", "hole.png"], 2, "words alone", "kleinbild edit"),
    "missing mask": ([*EDIT, "--mask", "hole.png"], 2, "hole.png", "check the path"),
    "mask without transparency": ([*EDIT, "--mask", "{pictures}/good.png"], 2, "no transparency", "alpha channel"),
    "mask of another size": ([*EDIT, "--mask", "{pictures}/hole.png"], 2, "is 32x32, the picture", "64x64"),
    "mask of nothing": ([*EDIT, "--mask", "{pictures}/opaque.png"], 2, "(opaque.png) is opaque", "transparent"),
    "mask and canvas": ([*EDIT, "--mask", "{pictures}/opaque.png", "--canvas", "96x96"], 2, "both", "one"),
    "mask and size": ([*EDIT, "--mask", "{pictures}/opaque.png", "--size", "96x96"], 2, "its input", "leave size"),
    "canvas in words": ([*EDIT, "--canvas", "wide"], 2, "'wide' is not a size", "128x96"),
    "small canvas": ([*EDIT, "--canvas", "96x48"], 2, "96x48 is smaller than the picture, which is 64x64", "64x64"),
    "huge canvas": ([*EDIT, "--canvas", "99999x99999"], 2, "megapixels", "50"),
    "place in words": ([*EDIT, "--canvas", "96x96", "--place", "left"], 2, "--place 'left'", "--place 32,0"),
    "place off the canvas": ([*EDIT, "--canvas", "96x96", "--place", "40,0"], 2, "at 40,0", "from 0,0 to 32,32"),
    "place without canvas": ([*EDIT, "--place", "8,8"], 2, "no canvas", "give the canvas"),
    "truncated picture": (["edit", PROMPT, "-i", "{pictures}/truncated.png"], 2, "truncated.png", "again"),
    "text as picture": (["edit", PROMPT, "-i", "{pictures}/text.png"], 2, "text.png", "PNG, JPEG"),
    "empty picture": (["edit", PROMPT, "-i", "{pictures}/empty.png"], 2, "empty.png", "PNG, JPEG"),
    "one pixel": (["edit", PROMPT, "-i", "{pictures}/one-pixel.png"], 2, "1x1", "pixels a side"),
    "hundred megapixels": (["edit", PROMPT, "-i", "{pictures}/hundred-megapixels.png"], 2, "100 megapixels", "shrink"),
    "stdin twice": (["edit", PROMPT, "-i", "-", "-i", "-"], 2, "twice", "as a file"),
    "replay of nothing": (["generate", "--from", "missing.png"], 2, "missing.png", "check"),
    "replay without a record": (["generate", "--from", "{pictures}/good.png"], 2, "no record", "Kleinbild"),
    "info of a text": (["info", "{pictures}/text.png"], 2, "text.png", "Kleinbild"),
    "unknown model": (["generate", PROMPT, "-m", "klein-4"], 3, "nano, nano-base, klein-4b", "did you mean klein-4b?"),
    "model that is not here": (
        ["generate", PROMPT, "-m", "klein-9b"],
        3,
        "not on this machine",
        "kleinbild pull klein-9b",
    ),
    "missing model file": (["generate", PROMPT, "-m", "no/model"], 3, "no/model", "known model"),
    "pull of an unknown model": (["pull", "flux"], 3, "no model called 'flux'", "path"),
    "check of nothing": (["models", "check", "missing.safetensors"], 3, "missing.safetensors", "name a"),
    "check of a picture": (["models", "check", "{pictures}/good.png"], 3, "good.png", "fetch it again"),
    "missing folder": (["generate", PROMPT, "-o", "missing/cat.png"], 4, "missing does not exist", "mkdir -p missing"),
    "missing folders": (["generate", PROMPT, "-o", "a/b/"], 4, "a does not exist", "mkdir -p a"),
    "file as folder": (["generate", PROMPT, "-o", "{pictures}/good.png/cat.png"], 4, "not a folder", "mkdir"),
    "read-only folder": (["generate", PROMPT, "-o", "/proc/self/cat.png"], 4, "not writable", "another folder"),
    "no suffix": (["generate", PROMPT, "-o", "cat"], 4, "no suffix", ".png"),
    "unknown suffix": (["generate", PROMPT, "-o", "cat.gif"], 4, "'.gif'", ".png"),
    "suffix against format": (["generate", PROMPT, "-o", "cat.png", "--format", "jpeg"], 4, "png", "agree"),
    "empty output": (["generate", PROMPT, "-o", ""], 4, "-o is empty", "name a file"),
    "many to stdout": (["generate", PROMPT, "-o", "-", "-n", "2"], 4, "one picture", "folder"),
    "picture and JSON to stdout": (["generate", PROMPT, "-o", "-", "--json"], 4, "picture itself", "--json"),
    "sheet into nowhere": (["nano", "eval", "--sheets", "missing/sheets"], 4, "missing does not exist", "mkdir"),
    "unreachable hub": (["pull", "klein-4b"], 5, "cannot be reached", "same command again"),
}


SIZE_AND_LICENCE = ("klein-4b: ", "from ")  # what `pull` says before it fetches


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and no models but the package's."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_is_told_in_two(
    name: str,
    pictures: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, code, what, what_to_do = WRONG[name]
    monkeypatch.chdir(tmp_path)

    assert run(complete(arguments, pictures, tiny_model)) == code

    told = capsys.readouterr()
    check_two_lines(told.err, what, what_to_do)
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["one pixel", "missing model file", "read-only folder", "unreachable hub"])
def test_the_shell_sees_the_same(name: str, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    arguments, code, what, what_to_do = WRONG[name]

    result = kleinbild(*complete(arguments, pictures, tiny_model), cwd=tmp_path, **OFFLINE)

    assert result.code == code
    check_two_lines(result.stderr, what, what_to_do)
    assert result.stdout == b""
    assert list(tmp_path.iterdir()) == []


def complete(arguments: list[str], pictures: Path, model: Path) -> list[str]:
    arguments = [os.fsdecode(argument).replace("{pictures}", str(pictures)) for argument in arguments]
    names_model = arguments[0] not in ("generate", "edit") or "-m" in arguments
    return arguments if names_model else [*arguments, "-m", str(model)]


def check_two_lines(stderr: str, what: str, what_to_do: str) -> None:
    first, second = [line for line in stderr.splitlines() if not line.startswith(SIZE_AND_LICENCE)]
    assert first.startswith("error: ")
    assert what in first
    assert second.startswith("hint:  ")
    assert what_to_do in second


def test_nothing_on_stdin_is_no_picture(tiny_model: Path, tmp_path: Path) -> None:
    result = kleinbild("edit", PROMPT, "-i", "-", "-m", tiny_model, cwd=tmp_path)
    assert result.code == 2
    check_two_lines(result.stderr, "is empty", "give a PNG")


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "check", str(tmp_path / "\x1b[2Jgone\nnew line")]) == 3
    told = capsys.readouterr().err
    assert "\x1b" not in told
    check_two_lines(told, "\\x1b[2Jgone new line", "name a")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for arguments, variables in (
        (["info", "missing.png", "--debug"], {}),
        (["info", "missing.png"], {"KLEINBILD_DEBUG": "1"}),
    ):
        result = kleinbild(*arguments, cwd=tmp_path, **variables)
        assert result.code == 1
        assert result.stderr.startswith("Traceback")
        assert "PictureError: no such file: missing.png" in result.stderr


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(catalog, "ENTRIES", (None,))  # not what the command expects
    assert run(["models"]) == 1
    check_two_lines(capsys.readouterr().err, "a bug in Kleinbild: AttributeError", "--debug")


def test_a_reader_that_leaves_is_no_error_worth_words(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    result = with_stdout(write, "models", cwd=tmp_path)
    os.close(write)
    assert (result.code, result.stderr) == (4, "")


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("argument", ["models", "--help"])
def test_a_full_disk_behind_stdout_is_told(argument: str, tmp_path: Path) -> None:
    with FULL.open("wb") as full:
        result = with_stdout(full, argument, cwd=tmp_path)
    assert result.code == 4
    check_two_lines(result.stderr, "o space left", "place")
