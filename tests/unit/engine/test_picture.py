"""Pictures on disk: pixels and record in one file, whole or not at all."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from kleinbild.core.errors import OutputError, PictureError
from kleinbild.core.sizes import Size
from kleinbild.engine.picture import Picture, PictureFormat, read_record
from tests.unit.core.test_metadata import RECORD

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PICTURE = Picture(Image.fromarray(PIXELS), replace(RECORD, size=Size(64, 48)), {"denoise": 0.1})
SMOOTH = Picture(Image.linear_gradient("L").convert("RGB"), RECORD, {})

only_posix = pytest.mark.skipif(sys.platform == "win32", reason="limits, users and signals are POSIX's")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG", ".WebP"])
def test_png_and_webp_keep_every_pixel_and_the_record(tmp_path: Path, suffix: str) -> None:
    path = PICTURE.save(tmp_path / f"out{suffix}")
    with Image.open(path) as image:
        assert (np.array(image.convert("RGB")) == PIXELS).all()
    assert read_record(path) == read_record(str(path)) == read_record(path.read_bytes()) == PICTURE.record


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_close_and_keeps_the_record(tmp_path: Path, suffix: str) -> None:
    path = SMOOTH.save(str(tmp_path / f"out{suffix}"))
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert np.abs(np.array(image).astype(int) - np.array(SMOOTH.pil)).max() <= 3
    assert read_record(path) == SMOOTH.record


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_format_may_be_named(tmp_path: Path, kind: PictureFormat) -> None:
    path = PICTURE.save(tmp_path / "out.picture", kind)
    assert path.read_bytes() == PICTURE.to_bytes(kind)
    with Image.open(path) as image:
        assert image.format == kind.upper()


def test_notebooks_show_a_png() -> None:
    with Image.open(io.BytesIO(PICTURE._repr_png_())) as image:
        assert image.format == "PNG"


def test_the_seed_is_the_records() -> None:
    assert PICTURE.seed == RECORD.seed


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("out.bmp", None, "unknown suffix '.bmp'"),
        ("out", None, "no suffix that says the format"),
        ("out.png", "jpeg", "the suffix says png, the format says jpeg"),
        ("out.dat", "gif", "unknown format 'gif'"),
        ("missing/out.png", None, "there is no folder"),
        ("file/out.png", None, "there is no folder"),
        ("folder.png", None, "is a folder"),
        ("x" * 300 + ".png", None, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_told_and_leaves_nothing(
    tmp_path: Path, path: str, kind: PictureFormat | None, words: str
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as caught:
        PICTURE.save(tmp_path / path, kind)
    assert words in caught.value.message
    assert caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


PRELUDE = f"""
import os, sys
import numpy as np
from PIL import Image
from kleinbild.core.errors import OutputError
from kleinbild.core.metadata import Record
from kleinbild.engine.picture import Picture

pixels = np.random.default_rng(1).integers(0, 256, (600, 600, 3), dtype=np.uint8)
picture = Picture(Image.fromarray(pixels), Record.from_json({RECORD.to_json()!r}), {{}})
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    """A process in `folder` that has a picture of a megabyte as `picture`."""
    return subprocess.Popen([sys.executable, "-c", PRELUDE + code], cwd=folder, stdout=subprocess.PIPE, text=True)


@only_posix
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    process = start(
        """
if os.geteuid() == 0:  # root may write everywhere: become nobody, from within the folder
    os.setgid(65534)
    os.setuid(65534)
try:
    picture.save("out.png")
except OutputError as error:
    print(error.message)
""",
        tmp_path,
    )
    assert "is not writable" in process.communicate(timeout=120)[0]
    assert list(tmp_path.iterdir()) == []


@only_posix
def test_a_full_disk_leaves_the_older_picture_as_it_was(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "out.png")
    process = start(
        """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    picture.save("out.png")
except OutputError as error:
    print(error.message)
""",
        tmp_path,
    )
    assert "out.png cannot be written" in process.communicate(timeout=120)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == PICTURE.to_bytes()


@only_posix
def test_ctrl_c_leaves_whole_pictures_only(tmp_path: Path) -> None:
    process = start("while True:\n    picture.save('out.webp')\n", tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.webp").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.webp"]
    with Image.open(tmp_path / "out.webp") as image:
        image.load()
    assert read_record(tmp_path / "out.webp") == RECORD


def test_files_get_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = PICTURE.save(tmp_path / "out.png")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_record_too_long_for_a_jpeg(tmp_path: Path) -> None:
    long = replace(PICTURE, record=replace(RECORD, prompt="🦊" * 10_000))
    with pytest.raises(OutputError, match="too long"):
        long.save(tmp_path / "out.jpg")
    assert read_record(long.save(tmp_path / "out.webp")) == long.record
    assert [path.name for path in tmp_path.iterdir()] == ["out.webp"]


def with_text(text: str, key: str = "kleinbild") -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text)
    return plain("PNG", pnginfo=info)


def plain(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.pil.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (with_text("x", key="Comment"), "holds no record"),
        (plain("JPEG"), "holds no record"),
        (plain("WEBP"), "holds no record"),
        (with_text("{}"), "not a record of a picture"),
        (with_text("junk"), "not a record of a picture"),
        (plain("GIF"), "is not a PNG, JPEG or WebP"),
        (b"", "is not a PNG, JPEG or WebP"),
        (PICTURE.to_bytes()[:20], "is not a PNG|cannot be read"),
    ],
)
def test_a_file_without_a_record_is_told(file: bytes, words: str) -> None:
    with pytest.raises(PictureError, match=words) as caught:
        read_record(file)
    assert caught.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"no such file: .*missing"):
        read_record(tmp_path / "missing.png")
    with pytest.raises(PictureError, match="cannot be read"):
        read_record(tmp_path)
