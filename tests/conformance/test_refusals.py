"""What a stranger or a hurried user may send: refused in words that name the field, in OpenAI's shape."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from PIL import Image

from tests.conformance.pictures import png
from tests.server import Server

EDIT = "replace the fox with a cat"
PNG = png(Image.new("RGB", (64, 64)))
GOOD = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
BAD = "data:image/png;base64,AAAA"


def refusal(server: Server, path: str, status: int = 400, **more: Any) -> tuple[str, str]:
    """The field that is named, and the words."""
    answer = server.ask("POST", path, **more)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"images": [GOOD, BAD]}, "images.1"),
        ({"images": [GOOD], "references": ["http://127.0.0.1/"]}, "references.0"),
        ({"images": [GOOD], "mask": BAD}, "mask"),
        ({"images": [GOOD], "mask": GOOD}, "mask"),  # the engine says so: it has no transparency
    ],
)
def test_the_picture_that_is_wrong_is_named(server: Server, fields: dict[str, Any], param: str) -> None:
    assert refusal(server, "/v1/images/edits", json={"prompt": EDIT, **fields})[0] == param
    job = {"task": "image.edit", "input": {"prompt": EDIT, **fields}}
    named = refusal(server, "/v1/jobs", json=job)[0]
    assert named in (param, f"input.{param}")


def test_a_file_that_is_not_there_is_named(server: Server) -> None:
    body = {"prompt": EDIT, "images": [{"file_id": "file-none"}]}
    assert refusal(server, "/v1/images/edits", 404, json=body)[0] == "images.0"


def test_a_mask_in_a_form_is_named(server: Server) -> None:
    files = {"image": ("a.png", PNG), "mask": ("m.png", b"no picture")}
    assert refusal(server, "/v1/images/edits", files=files, data={"prompt": EDIT})[0] == "mask"


def test_nothing_large_is_kept_in_the_database(server: Server) -> None:
    long = "A" * 10_000
    picture = GOOD.replace(";base64", f";name={long}end.png;base64")
    job = {"task": "image.edit", "input": {"prompt": EDIT, "images": [picture]}}
    answer = server.ask("POST", "/v1/jobs", json=job)
    assert answer.status_code == 202, answer.text
    name = answer.json()["input"]["references"][0]["name"]
    assert (len(name), name[-7:]) == (255, "end.png")
    named = refusal(server, "/v1/images/generations", json={"prompt": EDIT, "model": f"gpt-image-{long}"})[0]
    assert named == "model"
    refusal(server, "/v1/jobs", json={**job, "metadata": {long: "x"}})


@pytest.mark.parametrize("more", [{"metadata": {"order": "2"}}, {"input": {"prompt": EDIT, "n": 2}}, {"metadata": {}}])
def test_another_job_with_the_same_key_is_refused(server: Server, more: dict[str, Any]) -> None:
    """Else a caller would be given a job that carries another order's metadata."""
    headers = {"Idempotency-Key": f"refusals {more}"}
    job = {"task": "image.generate", "input": {"prompt": "a red apple"}, "metadata": {"order": "1"}}
    first, again = (server.ask("POST", "/v1/jobs", json=job, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code, first.json()["id"]) == (202, 202, again.json()["id"])
    named = refusal(server, "/v1/jobs", 422, json={**job, **more}, headers=headers)[0]
    assert named == "Idempotency-Key"


@pytest.mark.parametrize(
    ("names", "param"),
    [(["image"] * 17, "image"), (["image"] * 40, "image"), (["image", "mask", "mask"], "mask")],
)
def test_no_file_is_dropped(server: Server, names: list[str], param: str) -> None:
    files = [(name, ("a.png", PNG)) for name in names]
    assert refusal(server, "/v1/images/edits", files=files, data={"prompt": EDIT})[0] == param


def test_lists_together_hold_no_more_than_one_may(server: Server) -> None:
    body = {"prompt": EDIT, "images": [GOOD] * 9, "references": [GOOD] * 9}
    param, message = refusal(server, "/v1/images/edits", json=body)
    assert (param, "18 pictures" in message, "at most 16" in message) == ("images", True, True)


def test_a_field_that_is_given_twice_is_refused(server: Server) -> None:
    files = [("image", ("a.png", PNG))]
    data = {"prompt": EDIT, "n": ["1", "2"]}
    assert refusal(server, "/v1/images/edits", files=files, data=data) == ("n", "'n' was given twice; give it once")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": GOOD}, "Unknown parameter: 'image'. Did you mean 'images'?"),
        ({"images": GOOD}, "Invalid value for 'images': Input should be a list"),
        ({"images": [GOOD] * 40}, "Invalid value for 'images': List should have at most 16 items, not 40"),
        ({"images": [5]}, "Invalid value for 'images.0': Input should be an object"),
        ({"images": [{}]}, "Invalid value for 'images.0': give exactly one of image_url and file_id"),
    ],
)
def test_words_are_those_of_json(server: Server, fields: dict[str, Any], words: str) -> None:
    assert refusal(server, "/v1/images/edits", json={"prompt": EDIT, **fields})[1] == words
