"""Every way of laying out data is recognised by itself, and what cannot be read says why."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest

from kleinbild.core.errors import PictureError, RequestError
from kleinbild.train.data.examples import Dataset, Example
from kleinbild.train.data.found import find_examples
from tests.unit.train.data.making import lay_out


def told(dataset: Dataset, root: Path) -> list[tuple[str, str, list[str]]]:
    """Each example's picture, caption and references, as paths from `root`."""
    return [
        (
            str(example.target.relative_to(root)),
            example.caption,
            [str(reference.relative_to(root)) for reference in example.references],
        )
        for example in dataset.examples
    ]


def test_captions_beside_pictures(tmp_path: Path) -> None:
    files = {
        "a.png": None,
        "a.txt": "a fox\n",
        "b.jpg": None,
        "b.caption": "ein Fuß",
        "in/c.webp": None,
        "in/c.txt": "c",
    }
    dataset = find_examples(lay_out(tmp_path, files))
    assert told(dataset, tmp_path) == [("a.png", "a fox", []), ("b.jpg", "ein Fuß", []), ("in/c.webp", "c", [])]
    assert dataset.layout == "pictures with captions beside them"
    assert dataset.notes == ("3 pictures with captions beside them",)
    assert [example.name for example in dataset.examples] == ["a.png", "b.jpg", "in/c.webp"]


def test_masks_lie_beside_or_in_a_folder(tmp_path: Path) -> None:
    lay_out(
        tmp_path, {"a.png": None, "a.txt": "a", "a_mask.png": None, "b.png": None, "b.txt": "b", "mask/b.png": None}
    )
    dataset = find_examples(tmp_path)
    assert [example.mask for example in dataset.examples] == [tmp_path / "a_mask.png", tmp_path / "mask/b.png"]
    assert dataset.notes == ("2 pictures with captions beside them, 2 masks",)


def test_a_picture_of_a_mask_with_a_caption_is_a_picture(tmp_path: Path) -> None:
    lay_out(tmp_path, {"old_mask.png": None, "old_mask.txt": "a Venetian mask"})
    assert told(find_examples(tmp_path), tmp_path) == [("old_mask.png", "a Venetian mask", [])]


def test_a_mask_without_its_picture_is_an_error(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.png": None, "a.txt": "a", "b_mask.png": None})
    with pytest.raises(PictureError, match=r"masks without a picture: b_mask\.png"):
        find_examples(tmp_path)


def test_one_caption_for_all_fills_in(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.png": None, "b.png": None})
    assert [each.caption for each in find_examples(tmp_path, root_caption="zwx").examples] == ["zwx", "zwx"]
    lay_out(tmp_path, {"a.txt": "a fox"})
    assert [each.caption for each in find_examples(tmp_path, root_caption="zwx").examples] == ["a fox", "zwx"]
    assert "1 picture without a caption: b.png" in find_examples(tmp_path).notes


def test_one_picture_is_enough(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.png": None, "a.txt": ""})
    assert find_examples(tmp_path).examples == (Example(tmp_path / "a.png", "", name="a.png"),)


@pytest.mark.parametrize("name", ["metadata.jsonl", "dataset.jsonl"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    lines = [
        {"file_name": "x/a.png", "text": "a", "mask": "m.png", "repeats": 3},
        {"file_name": "b.png", "text": "b", "control_path_1": "r1.png", "control_path_0": "r0.png", "score": 3},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n"
    lay_out(tmp_path, {"x/a.png": None, "b.png": None, "m.png": None, "r0.png": None, "r1.png": None, name: text})
    dataset = find_examples(tmp_path)
    assert told(dataset, tmp_path) == [("x/a.png", "a", []), ("b.png", "b", ["r0.png", "r1.png"])]
    assert [(each.mask, each.repeats) for each in dataset.examples] == [(tmp_path / "m.png", 3), (None, 1)]
    assert dataset.notes == (
        f"2 pictures told by {name}, 1 mask",
        "0 or 2 references a picture",
        f"1 column of {name} not used: score",
    )
    assert find_examples(tmp_path / name).examples == dataset.examples


def test_csv_with_a_list_of_references(tmp_path: Path) -> None:
    table = 'image,prompt,edit_image\na.png,"red, please","[""r.png"", ""s.png""]"\n'
    lay_out(tmp_path, {"a.png": None, "r.png": None, "s.png": None, "metadata.csv": table})
    assert told(find_examples(tmp_path), tmp_path) == [("a.png", "red, please", ["r.png", "s.png"])]


def test_tables_that_are_wrong_say_where(tmp_path: Path) -> None:
    def error(text: str) -> str:
        with pytest.raises(RequestError) as caught:
            find_examples(lay_out(tmp_path, {"a.png": None, "t.jsonl": text}) / "t.jsonl")
        return caught.value.message

    assert "line 2: not JSON" in error('{"file_name": "a.png"}\n{')
    assert f"line 1: {tmp_path / 'gone.png'}" in error('{"file_name": "gone.png"}')
    assert "has no column for the picture; it has name" in error('{"name": "a.png"}')
    assert "several columns for the caption: caption, text" in error(
        '{"file_name": "a.png", "caption": "", "text": ""}'
    )
    assert "the caption is 3, no text" in error('{"file_name": "a.png", "text": 3}')
    assert "line 1: 0 repeats" in error('{"file_name": "a.png", "repeats": 0}')


def test_a_confined_table_leads_nowhere_else(tmp_path: Path) -> None:
    lay_out(tmp_path, {"secret.png": None, "d/t.jsonl": '{"file_name": "../secret.png"}'})
    assert len(find_examples(tmp_path / "d").examples) == 1
    with pytest.raises(RequestError, match=r"\.\./secret\.png leads out"):
        find_examples(tmp_path / "d", confined=True)


def test_start_and_end(tmp_path: Path) -> None:
    names = ["f_start.png", "f_start2.png", "f_start3.jpg", "f_end.png", "g_in.png", "g_out.png"]
    dataset = find_examples(lay_out(tmp_path, {**dict.fromkeys(names), "f.txt": "go", "g.txt": "stop"}))
    assert told(dataset, tmp_path) == [
        ("f_end.png", "go", ["f_start.png", "f_start2.png", "f_start3.jpg"]),
        ("g_out.png", "stop", ["g_in.png"]),
    ]
    assert "1 or 3 references a picture" in dataset.notes


def test_half_a_pair_is_an_error(tmp_path: Path) -> None:
    lay_out(tmp_path, dict.fromkeys(["f_start.png", "f_end.png", "g_start.png", "h.png"]))
    with pytest.raises(RequestError, match=r"belong to none: g_start\.png, h\.png"):
        find_examples(tmp_path)


@pytest.mark.parametrize(
    ("target", "first", "second"), [("main", "control_1", "control_2"), ("images", "control", "control_2")]
)
def test_folders_side_by_side(tmp_path: Path, target: str, first: str, second: str) -> None:
    files = {f"{target}/a.png": None, f"{target}/a.txt": "a", f"{target}/b.png": None, f"{target}/b.txt": "b"}
    lay_out(tmp_path, {**files, f"{first}/a.jpg": None, f"{first}/b.png": None, f"{second}/a.png": None})
    assert told(find_examples(tmp_path), tmp_path) == [
        (f"{target}/a.png", "a", [f"{first}/a.jpg", f"{second}/a.png"]),
        (f"{target}/b.png", "b", [f"{first}/b.png"]),
    ]


def test_references_beside_pictures_of_the_root(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.png": None, "a.txt": "a", "control/a.png": None, "mask/a.png": None})
    dataset = find_examples(tmp_path)
    assert told(dataset, tmp_path) == [("a.png", "a", ["control/a.png"])]
    assert dataset.examples[0].mask == tmp_path / "mask/a.png"


def test_references_without_a_picture_are_an_error(tmp_path: Path) -> None:
    lay_out(tmp_path, {"main/a.png": None, "control/a.png": None, "control/b.png": None})
    with pytest.raises(RequestError, match="same name in main: b"):
        find_examples(tmp_path)


@pytest.mark.parametrize("inside", ["", "img/"])
def test_repeats_and_regularization(tmp_path: Path, inside: str) -> None:
    files = {f"{inside}10_sks dog/a.png": None, f"{inside}2_sks cat/b.png": None, f"{inside}2_sks cat/b.txt": "a cat"}
    dataset = find_examples(lay_out(tmp_path, {**files, "reg/1_dog/c.png": None}))
    assert [(each.caption, each.repeats, each.regularization) for each in dataset.examples] == [
        ("sks dog", 10, False),
        ("a cat", 2, False),
        ("dog", 1, True),
    ]
    assert dataset.num_repeated == 13
    assert "1 picture for regularization" in dataset.notes


def test_regularization_from_another_folder(tmp_path: Path) -> None:
    lay_out(tmp_path, {"d/a.png": None, "d/a.txt": "a", "r/a.png": None, "r/a.txt": "any"})
    dataset = find_examples(tmp_path / "d", regularization=tmp_path / "r")
    assert [each.regularization for each in dataset.examples] == [False, True]
    assert len({each.name for each in dataset.examples}) == 2
    (tmp_path / "r" / "a.txt").unlink()
    with pytest.raises(RequestError, match="nothing that says what the pictures show"):
        find_examples(tmp_path / "d", root_caption="zwx", regularization=tmp_path / "r")


def test_classes(tmp_path: Path) -> None:
    dataset = find_examples(lay_out(tmp_path, {"fox/1.png": None, "red_tractor/1.png": None}))
    assert told(dataset, tmp_path) == [("fox/1.png", "fox", []), ("red_tractor/1.png", "red tractor", [])]


def test_what_fits_nothing_says_what_was_seen_and_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        find_examples(lay_out(tmp_path, {"a.png": None, "b.png": None}))
    assert "holds 2 pictures, but nothing that says what the pictures show" in caught.value.message
    assert "fox_start.png" in caught.value.hint
    assert "metadata.jsonl" in caught.value.hint
    with pytest.raises(RequestError, match="holds no pictures"):
        find_examples(lay_out(tmp_path / "empty", {"readme.md": "words"}))
    with pytest.raises(RequestError, match="there is no"):
        find_examples(tmp_path / "gone")


def test_what_fits_two_layouts_names_both(tmp_path: Path) -> None:
    files = {"a.png": None, "a.txt": "a", "metadata.jsonl": '{"file_name": "a.png", "text": "other"}'}
    with pytest.raises(RequestError, match=r"read in 2 ways: a table .* captions beside them"):
        find_examples(lay_out(tmp_path / "one", files))
    files = {"a_start.png": None, "a_end.png": None, "10_dog/a.png": None}
    with pytest.raises(RequestError, match=r"read in 2 ways: pairs .* folders with repeats"):
        find_examples(lay_out(tmp_path / "two", files))


def test_data_deeper_down_are_not_mistaken_for_classes(tmp_path: Path) -> None:
    files = {f"{split}/{name}": None for split in ("train", "test") for name in ("a.png", "b.png")}
    tables = {f"{split}/metadata.jsonl": '{"file_name": "a.png", "text": "a"}' for split in ("train", "test")}
    with pytest.raises(RequestError) as caught:
        find_examples(lay_out(tmp_path, {**files, **tables}))
    assert caught.value.hint == "give test by itself"


def test_pictures_of_one_stem_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds both a\.jpg and a\.png"):
        find_examples(lay_out(tmp_path, {"a.png": None, "a.jpg": None, "a.txt": "a"}))


def test_captions_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"a\.txt is not text in UTF-8"):
        find_examples(lay_out(tmp_path, {"a.png": None, "a.txt": b"\xff\xfe\x00"}))


def test_nothing_is_left_aside_in_silence(tmp_path: Path) -> None:
    files = {"metadata.jsonl": '{"file_name": "a.png", "text": "a"}', "a.png": None, "b.png": None, "c.npz": b"x"}
    notes = find_examples(lay_out(tmp_path, files)).notes
    assert "1 picture not used: b.png" in notes
    assert "1 file of other kinds not used" in notes
    files = {"a.png": None, "a.txt": "a", "readme.txt": "b"}
    assert "1 text without a picture, not used: readme" in find_examples(lay_out(tmp_path / "in", files)).notes


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.png": None, "a.txt": "a"})
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(RequestError, match="links to a folder that it is in"):
        find_examples(tmp_path)


def test_ten_thousand_pictures_take_no_time_and_little_memory(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}.txt").write_text(f"number {number}")
    tracemalloc.start()
    begun = time.perf_counter()
    examples = find_examples(tmp_path).examples
    seconds, peak = time.perf_counter() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(examples) == 10_000
    assert seconds < 10  # two, with the tracing of memory
    assert peak < 60e6
