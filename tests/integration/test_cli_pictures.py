"""Pictures by the command: where they go, what is told, and that a record makes them again. The model is tiny and random."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from kleinbild.cli.main import run
from kleinbild.cli.outputs import slug
from kleinbild.cli.show import terminal_drawing
from kleinbild.engine.picture import read_record
from tests.integration.command import Result, environment, kleinbild

PROMPT = "a red cat on a beach"
NAME = "a-red-cat-on-a-beach"


@dataclass
class Command:
    """The command in this process, with the tiny model, in a folder of its own."""

    folder: Path
    model: Path
    capture: pytest.CaptureFixture[bytes]

    def __call__(self, *arguments: str) -> Result:
        self.capture.readouterr()
        with_model = [*arguments] if arguments[0] == "info" else [*arguments, "-m", str(self.model)]
        code = run(with_model)
        told = self.capture.readouterr()
        return Result(code, told.out, told.err.decode())

    def paths(self, *arguments: str) -> list[str]:
        """The paths that are told on stdout."""
        result = self(*arguments)
        assert result.code == 0, result.stderr
        return result.lines

    @property
    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def command(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, tiny_model, capsysbinary)


def pixels(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def differ(one: str | Path, other: str | Path) -> bool:
    return ImageChops.difference(pixels(one), pixels(other)).getbbox() is not None


def test_a_bare_prompt_makes_a_picture_named_after_it(command: Command) -> None:
    result = command(PROMPT)
    (path,) = result.lines
    seed = read_record(path).seed
    assert command.files == [path] == [f"{NAME}-{seed}.png"]
    assert pixels(path).size == (64, 64)
    assert f"seed {seed} · 64x64 · 4 steps" in result.stderr
    assert "tiny on cpu, float32, loaded in" in result.stderr


def test_offloading_is_told_and_changes_no_pixel(command: Command) -> None:
    command.paths("generate", PROMPT, "--seed", "7", "-o", "plain.png")
    for way in ("components", "blocks"):
        result = command("generate", PROMPT, "--seed", "7", "--offload", way, "-o", "offloaded.png")
        assert f"tiny on cpu, float32, offload {way}, loaded in" in result.stderr
        assert Path("offloaded.png").read_bytes() == Path("plain.png").read_bytes()


def test_names_of_our_own_never_overwrite(command: Command) -> None:
    for _ in range(3):
        command.paths("generate", PROMPT, "--seed", "7")
    assert command.files == [f"{NAME}-7-2.png", f"{NAME}-7-3.png", f"{NAME}-7.png"]


def test_a_named_file_is_overwritten(command: Command) -> None:
    Path("cat.webp").write_bytes(b"before")
    assert command.paths("generate", PROMPT, "-o", "cat.webp") == ["cat.webp"]
    with Image.open("cat.webp") as image:
        assert image.format == "WEBP"


def test_several_pictures_have_the_next_seeds(command: Command) -> None:
    paths = command.paths("generate", PROMPT, "-n", "3", "--seed", "7", "-o", "cat.png")
    assert paths == command.files == ["cat-1.png", "cat-2.png", "cat-3.png"]
    assert [read_record(path).seed for path in paths] == [7, 8, 9]
    command.paths("generate", PROMPT, "--seed", "8", "-o", "alone.png")
    assert not differ("alone.png", "cat-2.png")


def test_a_folder_is_made_if_the_path_ends_in_a_slash(command: Command) -> None:
    paths = command.paths("generate", PROMPT, "-o", "cats/", "--format", "jpg", "--seed", "1")
    paths += command.paths("generate", PROMPT, "-o", "cats", "--seed", "1")
    assert paths == [f"cats/{NAME}-1.jpg", f"cats/{NAME}-1.png"]


def test_size_aspect_and_steps(command: Command) -> None:
    (wide,) = command.paths("generate", PROMPT, "--size", "96x48", "--steps", "1")
    record = read_record(wide)
    assert (pixels(wide).size, record.steps) == ((96, 48), 1)
    (tall,) = command.paths("generate", PROMPT, "--aspect", "1:2", "--steps", "1")
    assert pixels(tall).size == (48, 96)


def test_an_odd_size_is_rounded_and_that_is_said(command: Command) -> None:
    result = command("generate", PROMPT, "--size", "70x100", "--steps", "1", "-o", "cat.png")
    assert result.code == 0
    assert pixels("cat.png").size == (64, 96)
    assert "70x100 was rounded to 64x96: sides are multiples of 16" in result.stderr


def test_an_edit_has_the_size_of_its_picture_and_is_replayed(command: Command) -> None:
    Image.radial_gradient("L").resize((301, 270)).convert("RGB").save("large.png")
    result = command("edit", PROMPT, "-i", "large.png", "-o", "edit.png", "--steps", "1")
    assert pixels("edit.png").size == (301, 270)
    assert "reference 1 (large.png) is 301x270: the model made" in result.stderr
    command.paths("generate", "--from", "edit.png", "-o", "again.png")
    assert not differ("edit.png", "again.png")


def test_a_masked_edit_keeps_all_else_and_is_replayed(command: Command) -> None:
    before = Image.radial_gradient("L").resize((97, 70)).convert("RGB")
    before.save("one.png")
    hole = Image.new("RGBA", before.size, "black")
    hole.paste((0, 0, 0, 0), (40, 20, 80, 60))
    hole.save("hole.png")
    command.paths("edit", PROMPT, "-i", "one.png", "--mask", "hole.png", "-o", "edit.png")

    changed = ImageChops.difference(pixels("edit.png"), before).getbbox()
    assert changed is not None
    assert changed[0] >= 40
    assert changed[1] >= 20
    assert "mask:      hole.png (sha256 " in command("info", "edit.png").stdout.decode()

    result = command("generate", "--from", "edit.png", "-o", "again.png")
    assert "the same as edit.png, to the pixel" in result.stderr
    Path("hole.png").rename("moved.png")
    lost = command("generate", "--from", "edit.png")
    assert (lost.code, "give it: --mask hole.png" in lost.stderr) == (2, True)
    command.paths("generate", "--from", "edit.png", "--mask", "moved.png", "-o", "given.png")
    assert not differ("edit.png", "given.png")
    wrong = command("generate", "--from", "edit.png", "--mask", "one.png")
    assert (wrong.code, "the mask is not the file used then" in wrong.stderr) == (2, True)


def test_a_canvas_keeps_its_picture_and_is_replayed(command: Command) -> None:
    before = Image.radial_gradient("L").resize((64, 48)).convert("RGB")
    before.save("one.png")
    command.paths("edit", PROMPT, "-i", "one.png", "--canvas", "99x48", "--place", "30,0", "-o", "wide.png")
    assert pixels("wide.png").size == (99, 48)
    assert pixels("wide.png").crop((30, 0, 94, 48)).tobytes() == before.tobytes()
    assert "canvas:    99x48, image 1 at 30,0" in command("info", "wide.png").stdout.decode()
    command.paths("generate", "--from", "wide.png", "-o", "again.png")
    assert not differ("wide.png", "again.png")


def test_json_tells_all_of_a_picture(command: Command) -> None:
    told = json.loads(command("generate", PROMPT, "--seed", "7", "-o", "cat.jpg", "--json").stdout)
    assert told["path"] == "cat.jpg"
    assert (told["seed"], told["model"], told["size"], told["steps"]) == (7, "tiny", "64x64", 4)
    assert {"text", "denoise", "decode"} <= told["timings"].keys()
    assert told["record"] == json.loads(read_record("cat.jpg").to_json())


def test_json_tells_what_was_rounded_or_scaled(command: Command) -> None:
    Image.radial_gradient("L").resize((301, 270)).convert("RGB").save("large.png")
    rounded = ["generate", PROMPT, "--size", "70x100"]
    scaled = ["edit", PROMPT, "-i", "large.png"]
    for arguments, words in ((rounded, "70x100 was rounded to 64x96"), (scaled, "reference 1 (large.png) is 301x270")):
        result = command(*arguments, "--steps", "1", "--json")
        (note,) = json.loads(result.stdout)["notes"]
        assert words in note
        assert note in result.stderr
    assert json.loads(command("generate", PROMPT, "--steps", "1", "--json").stdout)["notes"] == []


def test_json_of_several_is_an_array(command: Command) -> None:
    told = json.loads(command("generate", PROMPT, "-n", "2", "--seed", "7", "--json").stdout)
    assert [picture["path"] for picture in told] == command.files


def test_info_tells_how_a_picture_was_made(command: Command) -> None:
    command.paths("generate", PROMPT, "--seed", "7", "-o", "cat.jpg")
    told = command("info", "cat.jpg").stdout.decode()
    assert all(text in told for text in (PROMPT, "tiny", "7", "64x64", "float32 on cpu"))
    assert json.loads(command("info", "cat.jpg", "--json").stdout) == json.loads(read_record("cat.jpg").to_json())


def test_a_record_makes_the_same_picture_again(command: Command) -> None:
    command.paths("generate", PROMPT, "--size", "96x48", "--steps", "3", "-o", "cat.png")
    result = command("generate", "--from", "cat.png", "-o", "again.png")
    assert not differ("cat.png", "again.png")
    assert "the same as cat.png, to the pixel" in result.stderr


def test_a_replay_says_if_the_picture_was_changed_since(command: Command) -> None:
    command.paths("generate", PROMPT, "-o", "cat.png")
    with Image.open("cat.png") as image:
        text = image.info["kleinbild"]
    painted = Image.new("RGB", (64, 64), "red")
    info = Image.Exif()
    info.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + text.encode()
    painted.save("painted.webp", lossless=True, exif=info)
    assert "warning: painted.webp has other pixels" in command("generate", "--from", "painted.webp").stderr


def test_a_record_with_changes_makes_another_picture(command: Command) -> None:
    command.paths("generate", PROMPT, "--seed", "7", "-o", "cat.png")
    (path,) = command.paths("generate", "two blue dogs", "--from", "cat.png", "--aspect", "2:1", "--steps", "2")
    record = read_record(path)
    assert (record.prompt, record.seed, str(record.size), record.steps) == ("two blue dogs", 7, "96x48", 2)


def test_edits_start_from_pictures_in_their_order(command: Command) -> None:
    Image.new("RGB", (64, 96), "red").save("one.png")
    Image.new("RGB", (64, 64), "blue").save("two.jpg")
    (path,) = command.paths("edit", "image 1 on image 2", "-i", "one.png", "-i", "two.jpg", "--seed", "7")
    assert pixels(path).size == (64, 96)
    assert [reference.name for reference in read_record(path).references] == ["one.png", "two.jpg"]
    (other,) = command.paths(
        "edit", "image 1 on image 2", "-i", "two.jpg", "-i", "one.png", "--seed", "7", "--size", "64x96"
    )
    assert differ(path, other)
    assert "image 1:   one.png (sha256 " in command("info", path).stdout.decode()


def test_an_edit_is_replayed_from_the_very_files(command: Command) -> None:
    Path("originals").mkdir()
    Image.new("RGB", (64, 64), "red").save("originals/one.png")
    command.paths("edit", PROMPT, "-i", "originals/one.png", "-o", "originals/edit.png")

    command.paths("generate", "--from", "originals/edit.png", "-o", "beside.png")
    assert not differ("originals/edit.png", "beside.png")

    Path("originals/one.png").rename("elsewhere.png")
    lost = command("generate", "--from", "originals/edit.png")
    assert lost.code == 2
    assert "reference 1 of originals/edit.png is neither beside it nor here: one.png" in lost.stderr
    assert "-i one.png" in lost.stderr
    command.paths("generate", "--from", "originals/edit.png", "-i", "elsewhere.png", "-o", "given.png")
    assert not differ("originals/edit.png", "given.png")

    Image.new("RGB", (64, 64), "blue").save("one.png")  # the right name, another picture
    assert command("generate", "--from", "originals/edit.png").code == 2
    wrong = command("generate", "--from", "originals/edit.png", "-i", "one.png")
    assert wrong.code == 2
    assert "reference 1 is not the file used then" in wrong.stderr


def test_an_edit_with_cached_references_is_replayed_as_such(command: Command) -> None:
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save("one.png")
    command.paths("edit", PROMPT, "-i", "one.png", "--seed", "7", "-o", "exact.png")
    command.paths("edit", PROMPT, "-i", "one.png", "--seed", "7", "-o", "cached.png", "--cache-references")
    assert differ("exact.png", "cached.png")
    command.paths("generate", "--from", "cached.png", "-o", "again.png")
    assert not differ("cached.png", "again.png")
    assert "cached:" in command("info", "cached.png").stdout.decode()
    assert "cached:" not in command("info", "exact.png").stdout.decode()


def test_a_replay_with_other_weights_is_refused(command: Command, tmp_path: Path) -> None:
    command.paths("generate", PROMPT, "-o", "cat.png")
    record = json.loads(read_record("cat.png").to_json())
    info = Image.Exif()
    info.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps({**record, "fingerprint": "0123456789abcdef"}).encode()
    pixels("cat.png").save("foreign.webp", exif=info)
    result = command("generate", "--from", "foreign.webp", "-o", "again.png")
    assert result.code == 2
    assert "it would not be the same" in result.stderr
    assert not Path("again.png").exists()


def test_show_without_anything_that_shows_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    result = command("generate", PROMPT, "-o", "cat.png", "--show")
    assert result.code == 0
    assert "nothing here can show pictures; it is in cat.png" in result.stderr


def test_show_starts_the_desktop_s_viewer(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = command.folder / "xdg-open"
    viewer.write_text('#!/bin/sh\necho chatter\nprintf "%s" "$1" > seen.part && mv seen.part seen\n')
    viewer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")

    assert command.paths("generate", PROMPT, "-o", "cat.png", "--show") == ["cat.png"]

    seen = command.folder / "seen"
    deadline = time.monotonic() + 20
    while not seen.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert seen.read_text() == str(command.folder / "cat.png")


@pytest.mark.parametrize(
    ("terminal", "envelope"),
    [
        ({"TERM": "xterm-kitty"}, r"\x1b_G[^;]*;([^\x1b]*)\x1b\\"),
        ({"KONSOLE_VERSION": "240800"}, r"\x1b_G[^;]*;([^\x1b]*)\x1b\\"),
        ({"TERM_PROGRAM": "iTerm.app"}, r"\x1b\]1337;File=inline=1;size=9000:([^\a]*)\a"),
    ],
)
def test_terminals_that_draw_pictures_get_the_whole_file(terminal: dict[str, str], envelope: str) -> None:
    png = bytes(range(250)) * 36
    drawing = terminal_drawing(png, terminal)
    assert drawing is not None
    assert base64.b64decode("".join(re.findall(envelope, drawing))) == png
    assert re.sub(envelope, "", drawing) == ""
    assert terminal_drawing(png, {"TERM": "xterm-256color"}) is None


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red CAT, on/a beach!", "a-red-cat-on-a-beach"),
        ("ein Löwe im Schnee", "ein-löwe-im-schnee"),
        ("海辺の赤い猫", "海辺の赤い猫"),
        ("../../etc/passwd", "etc-passwd"),
        ("!?", "picture"),
        (
            "a penguin to the left of a snowman in the snow under a starry sky",
            "a-penguin-to-the-left-of-a-snowman-in-the-snow",
        ),
        ("x" * 500, "x" * 50),
    ],
)
def test_file_names_come_from_prompts(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_pictures_through_pipes_are_the_same_in_another_process(command: Command) -> None:
    reference = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(reference, "PNG")
    Path("one.png").write_bytes(reference.getvalue())
    command.paths("edit", PROMPT, "-i", "one.png", "--seed", "7", "-o", "edit.png")

    arguments = ("edit", PROMPT, "-i", "-", "-o", "-", "--seed", "7", "--format", "webp", "-m", command.model)
    piped = kleinbild(*arguments, cwd=command.folder, stdin=reference.getvalue(), OMP_NUM_THREADS="1")

    assert piped.code == 0, piped.stderr
    with Image.open(io.BytesIO(piped.stdout)) as image:
        assert image.format == "WEBP"
        assert ImageChops.difference(image.convert("RGB"), pixels("edit.png")).getbbox() is None
    assert "seed 7 · " in piped.stderr
    assert "\x1b" not in piped.stderr
    assert command.files == ["edit.png", "one.png"]


def test_ctrl_c_leaves_only_whole_pictures(tiny_model: Path, tmp_path: Path) -> None:
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may have switched it off
        "from kleinbild.cli.main import main; main()"
    )
    arguments = ["generate", PROMPT, "-n", "1000", "--size", "128x128", "--steps", "20", "-m", str(tiny_model)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    first = process.stdout.readline().decode().strip()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert stderr.decode().splitlines()[-1] == "stopped; nothing was left half-written"
    assert b"Traceback" not in stderr
    written = list(tmp_path.iterdir())
    assert tmp_path / first in written
    assert all(pixels(path).size == (128, 128) for path in written)
