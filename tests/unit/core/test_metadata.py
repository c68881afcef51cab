"""The record: it survives as ASCII text, nothing else passes for one, and it is enough to ask again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleinbild.core.errors import PictureError
from kleinbild.core.metadata import Record, ReferenceRecord
from kleinbild.core.requests import MAX_SEED, PictureRequest, digest, replay_request
from kleinbild.core.sizes import Size

RECORD = Record(
    version="0.1.0",
    model="nano",
    fingerprint="0123456789abcdef",
    prompt="ein Fuchs 🦊",
    seed=7,
    steps=4,
    guidance=1.0,
    size=Size(128, 96),
    dtype="float32",
    device="cpu",
    references=(ReferenceRecord("a.png", digest(b"a")), ReferenceRecord("", digest(b"b"))),
)


@given(st.text(), st.integers(0, MAX_SEED), st.floats(1, 20), st.lists(st.text(), max_size=3))
def test_a_record_survives_as_ascii(prompt: str, seed: int, guidance: float, names: list[str]) -> None:
    references = tuple(ReferenceRecord(name, digest(name.encode("utf-8", "replace"))) for name in names)
    record = replace(RECORD, prompt=prompt, seed=seed, guidance=guidance, references=references)
    text = record.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert Record.from_json(text) == record


MASKED = replace(RECORD, input_size=True, mask=ReferenceRecord("hole.png", digest(b"mask")))
ON_CANVAS = replace(RECORD, input_size=True, canvas=Size(200, 150), place=(0, 7))
CACHED = replace(RECORD, cache_references=True)
REVISED = replace(RECORD, revised_prompt="a fox on the left, mint background")


@pytest.mark.parametrize("record", [MASKED, ON_CANVAS, CACHED, REVISED, replace(RECORD, input_size=True)])
def test_what_only_some_edits_have_survives(record: Record) -> None:
    assert Record.from_json(record.to_json()) == record


def test_what_only_some_edits_have_is_not_in_the_record_of_others() -> None:
    """So that older versions read them, and records of older versions are read."""
    assert list(json.loads(RECORD.to_json())) == [
        *("version", "model", "fingerprint", "prompt", "seed", "steps", "guidance", "size", "dtype", "device"),
        "references",
    ]


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(RECORD.to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        changed(colour="red"),
        changed(size=None),
        changed(size={"width": 1}),
        changed(size={"width": "128", "height": 96}),
        changed(references="a.png"),
        changed(references=[{"name": "a.png"}]),
        changed(references=[{"name": "a.png", "sha256": 1}]),
        changed(seed="7"),
        changed(seed=True),
        changed(steps=4.0),
        changed(prompt=None),
        changed(guidance="1"),
        changed(input_size=1),
        changed(mask="hole.png"),
        changed(mask={"name": "hole.png", "sha256": None}),
        changed(canvas=[200, 150]),
        changed(canvas={"width": 200, "height": "150"}),
        changed(place=[1]),
        changed(place=7),
        changed(place=["0", 7]),
        changed(cache_references="yes"),
        changed(revised_prompt=None),
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a record of a picture"):
        Record.from_json(text)


def test_a_request_is_replayed_with_everything_settled() -> None:
    assert replay_request(RECORD, [b"a", b"b"]) == PictureRequest(
        prompt=RECORD.prompt,
        model="nano",
        size=Size(128, 96),
        seed=7,
        steps=4,
        guidance=1.0,
        references=(b"a", b"b"),
        reference_names=("a.png", ""),
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "made from 2 reference pictures, 0 were given"),
        ([b"a"], "made from 2 reference pictures, 1 were given"),
        ([b"b", b"a"], "reference 1 is not the file used then (a.png"),
        ([b"a", b"c"], "reference 2 is not the file used then (unnamed"),
    ],
)
def test_a_replay_takes_the_very_same_files(files: list[bytes], words: str) -> None:
    with pytest.raises(PictureError) as caught:
        replay_request(RECORD, files)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_masked_edit_is_replayed_with_its_mask_and_the_inputs_size() -> None:
    request = replay_request(MASKED, [b"a", b"b"], b"mask")
    assert (request.size, request.mask, request.mask_name) == (None, b"mask", "hole.png")
    for mask, words in [(None, "made with a mask"), (b"other", "the mask is not the file used then (hole.png")]:
        with pytest.raises(PictureError) as caught:
            replay_request(MASKED, [b"a", b"b"], mask)
        assert words in caught.value.message
        assert "hole.png" in caught.value.message + caught.value.hint
    with pytest.raises(PictureError, match="made without a mask"):
        replay_request(RECORD, [b"a", b"b"], b"mask")


def test_a_canvas_is_replayed_with_its_place() -> None:
    request = replay_request(ON_CANVAS, [b"a", b"b"])
    assert (request.size, request.canvas, request.place) == (None, Size(200, 150), (0, 7))


def test_cached_references_are_replayed_as_such() -> None:
    assert replay_request(CACHED, [b"a", b"b"]).cache_references
    assert not replay_request(RECORD, [b"a", b"b"]).cache_references


def test_names_without_their_files_are_refused() -> None:
    with pytest.raises(ValueError, match="1 reference_names for 0 references"):
        PictureRequest("a cat", reference_names=("a.png",))
