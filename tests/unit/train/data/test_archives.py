"""Archives: the same data as in folders, and nothing that could harm."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.train.data.archives import ArchiveLimits, unpacked
from kleinbild.train.data.found import find_examples
from tests.unit.train.data.making import lay_out


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/._a.png", b"of no use")
    return path


def tarred(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.add(file, file.relative_to(folder), recursive=False)
    return path


def zip_of(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


LAID_OUT = {
    "beside": {"a.png": None, "a.txt": "a"},
    "fal": {"a_start.png": None, "a_end.png": None, "a.txt": "a"},
    "Civitai": {"main/a.png": None, "main/a.txt": "a", "control_1/a.png": None, "control_2/a.png": None},
    "kohya": {"3_a/x.png": None},
    "table": {"x.png": None, "metadata.csv": "file_name,text\nx.png,a\n"},
    "wrapped": {"my data/a.png": None, "my data/a.txt": "a"},
}


@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_of_every_layout(tmp_path: Path, layout: str, pack: object) -> None:
    folder = lay_out(tmp_path / "d", LAID_OUT[layout])
    archive = pack(tmp_path / f"d.{'zip' if pack is zipped else 'tar'}", folder)  # type: ignore[operator]
    dataset = find_examples(archive)
    assert [example.caption for example in dataset.examples] == ["a"]
    assert all(file.is_file() for file in dataset.examples[0].files)
    assert find_examples(archive).examples == dataset.examples, "unpacked once, found again"


def test_pictures_alone_with_a_trigger(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "d.zip", lay_out(tmp_path / "d", {"1.jpg": None, "2.jpg": None}))
    assert [example.caption for example in find_examples(archive, root_caption="zwx").examples] == ["zwx", "zwx"]


def test_webdataset(tmp_path: Path) -> None:
    one = {
        "000.jpg": None,
        "000.txt": "zero",
        "000.ref0.png": None,
        "000.ref1.png": None,
        "001.png": None,
        "001.json": json.dumps({"caption": "one", "score": 1}),
        "001.mask.png": None,
    }
    (tmp_path / "shards").mkdir()
    tarred(tmp_path / "shards" / "0.tar", lay_out(tmp_path / "a", one))
    tarred(tmp_path / "shards" / "1.tar", lay_out(tmp_path / "b", {"000.webp": None, "000.txt": "again"}))
    dataset = find_examples(tmp_path / "shards")
    assert [(example.name, example.caption) for example in dataset.examples] == [
        ("0.tar/000", "zero"),
        ("0.tar/001", "one"),
        ("1.tar/000", "again"),
    ]
    zero, first, _ = dataset.examples
    assert [path.name for path in zero.references] == ["000.ref0.png", "000.ref1.png"]
    assert first.mask is not None
    assert find_examples(tmp_path / "shards" / "1.tar").examples[0].caption == "again"


def test_a_sample_without_a_picture_is_an_error(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "0.tar", lay_out(tmp_path / "a", {"0.jpg": None, "0.txt": "a", "1.txt": "b"}))
    with pytest.raises(RequestError, match=r"0\.tar: the sample 1 has no picture"):
        find_examples(archive)


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/etc/out.png", "..\\out.png", "C:\\out.png"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, own_home: Path) -> None:
    archive = zip_of(tmp_path / "d.zip", {"a.png": b"x", name: b"evil"})
    with pytest.raises(RequestError, match="leads out of its folder"):
        find_examples(archive)
    assert not list(tmp_path.rglob("out.png"))
    assert not list(own_home.rglob("*.png")), "nothing is left behind"


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png"])
def test_a_tar_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(RequestError, match="leads out of its folder"):
        find_examples(tmp_path / "d.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(RequestError):
        find_examples(tmp_path / "d.tar")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(RequestError, match=r"holds a link, a\.png"):
        find_examples(tmp_path / "d.zip")


def test_bombs_are_refused(tmp_path: Path, own_home: Path) -> None:
    archive = zip_of(tmp_path / "d.zip", {"a.png": b"\0" * 5_000_000})
    limits = ArchiveLimits(free_bytes=1_000_000)
    with pytest.raises(RequestError, match="holds more than 1 MB once unpacked"):
        unpacked(archive, limits)
    assert not list(own_home.rglob("a.png"))
    assert unpacked(archive).is_dir(), "little enough not to matter"


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "d.zip", {"a.png": b"\0" * 5_000_000})
    size = (5_000_000).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(RequestError):
        unpacked(archive, ArchiveLimits(free_bytes=1_000_000))


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "d.zip", {f"{number}.png": b"" for number in range(11)})
    with pytest.raises(RequestError, match="holds more than 10 files"):
        unpacked(archive, ArchiveLimits(max_files=10))


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", b"2")
    with pytest.raises(RequestError, match=r"holds one name twice: a\.png"):
        unpacked(tmp_path / "d.zip")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + b"\0" * 40])
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_damaged_archives_say_so(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"d.{ending}"
    path.write_bytes(content)
    with pytest.raises(RequestError):
        find_examples(path)


def test_tables_in_archives_lead_nowhere_else(tmp_path: Path) -> None:
    table = json.dumps({"file_name": "/etc/passwd", "text": "a"})
    archive = zip_of(tmp_path / "d.zip", {"metadata.jsonl": table.encode()})
    with pytest.raises(RequestError, match="/etc/passwd leads out"):
        find_examples(archive)
