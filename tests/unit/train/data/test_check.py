"""The preflight: finds what would spoil a run, leaves what is well alone, and says what it will need."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from kleinbild.cli.checking import check_command, subject_of
from kleinbild.core.errors import ModelError, RequestError
from kleinbild.train.data.captions import caption_findings
from kleinbild.train.data.check import Report, Smoke, Subject, check
from kleinbild.train.data.duplicates import duplicates
from kleinbild.train.data.examples import Example
from kleinbild.train.data.findings import Finding
from kleinbild.train.data.pictures import look
from kleinbild.train.data.smoke import smoke_run
from kleinbild.train.recipe import Recipe
from tests.unit.train.data.making import lay_out, picture


@pytest.fixture(scope="module")
def nano() -> Subject:
    return subject_of("nano-base")


def captioned(root: Path, number: int, size: tuple[int, int] = (128, 128)) -> Path:
    for index in range(number):
        picture(root / f"{index}.png", size, seed=index + 100)
        (root / f"{index}.txt").write_text(f"thing number {'abcdefgh'[index]}")
    return root


def kinds(report: Report) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def test_a_good_data_set_has_no_findings(nano: Subject, tmp_path: Path) -> None:
    report = check(captioned(tmp_path, 6), {}, nano)
    assert report.findings == ()
    assert report.buckets == {"128x128": 6}
    assert report.tokens is not None
    assert report.tokens.largest == nano.spec.text_encoder.max_tokens + 64
    assert report.memory is not None
    assert report.disk_bytes > 0


def test_findings_say_what_and_where(nano: Subject, tmp_path: Path) -> None:
    captioned(tmp_path, 6)
    lay_out(tmp_path, {"broken.png": b"no", "broken.txt": "x", "empty.txt": ""})
    picture(tmp_path / "empty.png", (128, 128), 7)
    picture(tmp_path / "tiny.png", (40, 40), 8)
    (tmp_path / "tiny.txt").write_text("tiny")
    picture(tmp_path / "strip.png", (640, 40), 9)
    (tmp_path / "strip.txt").write_text("a strip")
    Image.new("RGBA", (128, 128), (200, 0, 0, 100)).save(tmp_path / "clear.png")
    (tmp_path / "clear.txt").write_text("clear")
    Image.new("L", (128, 128), 0).save(tmp_path / "0_mask.png")
    picture(tmp_path / "1_mask.png", (128, 64))
    found = kinds(check(tmp_path, {}, nano))
    assert {kind: (one.severity, one.files) for kind, one in found.items()} == {
        "broken pictures": ("error", (str(tmp_path / "broken.png"),)),
        "too narrow": ("error", ("strip.png",)),
        "masks of another shape": ("error", ("1.png",)),
        "black masks": ("error", ("0.png",)),
        "small pictures": ("warning", ("tiny.png",)),
        "empty captions": ("warning", ("empty.png",)),
        "transparent": ("note", ("clear.png",)),
    }


def test_errors_come_first(nano: Subject, tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.png": None, "a.txt": "", "b.png": b"no", "b.txt": "b"})
    severities = [finding.severity for finding in check(tmp_path, {}, nano).findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert severities[0] == "error"


def test_pictures_that_are_there_twice(tmp_path: Path) -> None:
    first = picture(tmp_path / "a.png", (96, 96), 1)
    image = Image.open(first)
    image.save(tmp_path / "same.webp", lossless=True)
    image.save(tmp_path / "near.jpg", quality=70)
    picture(tmp_path / "other.png", (96, 96), 2)
    seen = look(sorted(tmp_path.iterdir())).require_whole()
    same, near = duplicates({path.name: one for path, one in seen.items()})
    assert set(same.files) == {"a.png", "same.webp"}
    assert set(near.files) == {"a.png", "near.jpg"}


def test_plain_pictures_of_other_colours_are_no_duplicates(tmp_path: Path) -> None:
    for colour in ("red", "blue", "white"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    seen = look(sorted(tmp_path.iterdir())).require_whole()
    assert list(duplicates({path.name: one for path, one in seen.items()})) == []


def captions_told(captions: list[str], trigger_words: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    examples = [Example(Path(f"{i}.png"), caption, name=f"{i}.png") for i, caption in enumerate(captions)]
    return {one.kind: one.files for one in caption_findings(examples, trigger_words=trigger_words)}


def test_good_captions_are_left_alone() -> None:
    captions = ["a photo of zwx on a beach", "zwx, sitting", "a red fox at dawn, zwx", "the image of god, zwx"]
    assert captions_told(captions, ("zwx",)) == {}


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("IMG_2041", "file names"),
        ("holiday.jpg", "file names"),
        ("d41d8cd98f00b204e9800998ecf8427e", "file names"),
        ("Sure, here is a caption: a dog", "answers"),
        ("I'm sorry, I can't help", "answers"),
        ("  ", "empty captions"),
        ("a dog\nby a lake", "captions of several lines"),
    ],
)
def test_captions_that_leak(caption: str, kind: str) -> None:
    assert captions_told(["a dog in a park", caption, "a cat"]) == {kind: ("1.png",)}


def test_the_same_caption_everywhere() -> None:
    assert "one caption" in captions_told(["a dog"] * 3)
    assert captions_told(["a dog"] * 2) == {}


def test_boilerplate_and_missing_trigger_words() -> None:
    told = captions_told(["This image shows a dog", "The image depicts zwx", "An image of a cat", "zwxy"], ("ZWX",))
    assert told["boilerplate"] == ("0.png", "1.png", "2.png")
    assert told["no trigger word"] == ("0.png", "2.png", "3.png")


def test_trigger_words_do_not_belong_into_regularization() -> None:
    examples = [Example(Path("a"), "zwx", name="a"), Example(Path("b"), "zwx", regularization=True, name="b")]
    (found,) = caption_findings(examples, trigger_words=["zwx"])
    assert found.files == ("b",)


def test_each_line_of_a_caption_is_looked_at() -> None:
    (found,) = caption_findings([Example(Path("a"), "zwx", name="a", wordings=("a zwx", "zw"))], trigger_words=["zwx"])
    assert (found.kind, found.files) == ("no trigger word", ("a, line 3",))


def test_captions_too_long_are_an_error(nano: Subject, tmp_path: Path) -> None:
    captioned(tmp_path, 5)
    (tmp_path / "3.txt").write_text("apple " * 600)
    found = kinds(check(tmp_path, {}, nano))["long captions"]
    assert (found.severity, found.files) == ("error", ("3.png",))


def pairs(root: Path, after: Callable[[int], Image.Image], before: Callable[[int], Image.Image]) -> Path:
    root.mkdir(exist_ok=True)
    for index in range(6):
        before(index).save(root / f"{index}_start.png")
        after(index).save(root / f"{index}_end.png")
        (root / f"{index}.txt").write_text(f"edit {index}")
    return root


def part_of(seed: int, left: int = 8) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), np.uint8)
    return Image.fromarray(colours).resize((160, 160), Image.Resampling.BICUBIC).crop((left, 8, left + 128, 136))


EDIT = {"references": "target"}


def test_pairs_that_are_shifted_are_found(nano: Subject, tmp_path: Path) -> None:
    root = pairs(tmp_path, after=lambda i: part_of(i, left=5 if i == 2 else 8), before=part_of)
    found = kinds(check(root, EDIT, nano))
    assert found["misaligned pairs"].files == ("2_end.png",)
    assert "2_end.png by +3.0, +0.0 pixels" in found["misaligned pairs"].what
    assert len(found["nothing changes"].files) == 5
    assert "misaligned pairs" not in kinds(check(root, {"references": "free"}, nano)), "they need not lie on each other"


def test_edits_that_leave_the_picture_in_its_place_are_not_misaligned(nano: Subject, tmp_path: Path) -> None:
    def edited(index: int) -> Image.Image:
        image = part_of(index)
        if index % 3 == 0:  # recoloured
            return Image.fromarray(np.asarray(image)[:, :, [2, 0, 1]])
        if index % 3 == 1:  # something is added
            image.paste((220, 30, 30), (70, 60, 110, 100))
            return image
        return part_of(index + 50)  # nothing stays

    assert check(pairs(tmp_path, after=edited, before=part_of), EDIT, nano).findings == ()


def test_pairs_of_other_shapes(nano: Subject, tmp_path: Path) -> None:
    root = pairs(tmp_path, after=part_of, before=lambda i: part_of(i + 9).resize((128, 96 if i == 1 else 128)))
    assert kinds(check(root, EDIT, nano))["pairs of other shapes"].files == ("1_end.png",)


def test_distilled_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nano is distilled"):
        check(captioned(tmp_path, 5), {"model": "nano"}, subject_of("nano"))


def test_time_and_cost_follow_from_a_smoke_run(nano: Subject, tmp_path: Path) -> None:
    asked: list[tuple[Recipe, int]] = []

    def smoke(recipe: Recipe, num_steps: int) -> Smoke:
        asked.append((recipe, num_steps))
        return Smoke(seconds_a_step=0.5, loss_first=1.0, loss_last=0.9)

    report = check(captioned(tmp_path, 6), {"steps": 7200}, nano, smoke=smoke, price_an_hour=2.0)
    assert (report.seconds, report.cost) == (3600.0, 2.0)
    assert asked[0][1] == 20
    assert asked[0][0].data == str(tmp_path)
    bad = check(tmp_path, {}, nano, smoke=lambda recipe, num_steps: Smoke(1.0, 1.0, float("nan")))
    assert kinds(bad)["loss"].severity == "error"
    (tmp_path / "0.png").write_bytes(b"no")
    check(tmp_path, {}, nano, smoke=smoke)
    assert len(asked) == 1, "what cannot start is not tried"


def test_the_trainer_itself_is_measured_and_registers_nothing(
    nano: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    report = check(captioned(tmp_path / "d", 3), {"rank": 2, "name": "fox"}, nano)
    measured = smoke_run(replace(report.recipe, data=str(tmp_path / "d")), 5)
    assert 0 < measured.seconds_a_step < 30
    assert 0 < measured.loss_last < 10
    assert (tmp_path / "home" / "training").is_dir()
    assert not (tmp_path / "home" / "adapters").exists()


def test_what_the_trainer_fails_with_is_told(nano: Subject, tmp_path: Path) -> None:
    report = check(captioned(tmp_path / "d", 3), {}, nano)
    with pytest.raises((RequestError, ModelError)):
        smoke_run(replace(report.recipe, model="no-such-model"), 5)


def test_pictures_are_looked_at_once(nano: Subject, tmp_path: Path) -> None:
    root, memory = captioned(tmp_path / "d", 8, (1024, 1024)), tmp_path / "m.json"
    begun = time.perf_counter()
    first = check(root, {}, nano, remembered=memory)
    between = time.perf_counter()
    assert check(root, {}, nano, remembered=memory) == first
    assert time.perf_counter() - between < between - begun


app = typer.Typer()
app.command()(check_command)


def test_the_command_shows_all_and_leaves_with_2_on_errors(tmp_path: Path) -> None:
    captioned(tmp_path, 5)
    done = CliRunner().invoke(app, [str(tmp_path), "--recipe", "style", "--set", "rank=4"])
    assert done.exit_code == 0, done.output
    for words in (
        "layout    pictures with captions",
        "sizes     128x128 (5)",
        "memory    about",
        "gradient checkpoint",
    ):
        assert words in done.output
    assert "nothing found that would spoil a run" in done.output
    (tmp_path / "0.png").write_bytes(b"no")
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert done.exit_code == 2
    assert "error     1 picture cannot be used" in done.output


def test_the_command_in_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(captioned(tmp_path, 3)), "--json"])
    told = json.loads(done.stdout)
    assert told["num_examples"] == 3
    assert told["memory"]["total"] > told["memory"]["weights"] > 0
    assert [finding["kind"] for finding in told["findings"]] == ["few pictures"]


def test_a_price_needs_a_time(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(captioned(tmp_path, 3)), "--price", "2"])
    assert isinstance(done.exception, RequestError)
    assert "add --smoke" in done.exception.hint
