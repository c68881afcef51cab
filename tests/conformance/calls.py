"""Calls of the `openai` package, each with what its answer must be. They are made to the server, and again through a
proxy that checks every request and every answer against OpenAI's own description."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import numpy as np
import pytest
from openai import APIStatusError, OpenAI
from openai.types import ImagesResponse
from PIL import Image

from kleinbild.nano.scenes.lexicon import NOUN_BY_NAME
from kleinbild.nano.scenes.oracle import judge_any
from kleinbild.nano.scenes.render import NATIVE
from kleinbild.nano.scenes.tasks import somewhere
from kleinbild.nano.settle import settle
from tests.conformance.pictures import bytes_of, data_url, difference, opened, png

PROMPT = "a red apple in the middle on a beach"
EDIT = "change the background to a night sky"
LIKE = 8.0
"""A picture is like another whose values differ by less in the mean (of 255); noise and other scenes are far beyond."""

Call = Callable[[OpenAI], None]
CALLS: list[Call] = []


def call(made: Call) -> Call:
    CALLS.append(made)
    return made


def apple(client: OpenAI, seed: int = 7) -> bytes:
    return bytes_of(client.images.generate(prompt=PROMPT, extra_body={"seed": seed}))


def warnings(answer: object) -> list[str]:
    return [warning.partition(":")[0] for warning in answer.warnings]  # type: ignore[attr-defined]


@call
def generate(client: OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, model="nano")
    assert opened(bytes_of(answer)).format == "PNG"
    assert (answer.size, answer.quality, answer.background, answer.output_format) == (
        "128x128",
        "high",
        "opaque",
        "png",
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")
    assert warnings(answer) == []


@call
def generate_several(client: OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, n=3, extra_body={"seed": 7})
    files = [bytes_of(answer, index) for index in range(3)]
    assert len(set(files)) == 3
    for file, seed in zip(files, (7, 8, 9), strict=True):  # made together or alone, it is the same but for rounding
        assert difference(file, apple(client, seed)) < 0.01


@call
def generate_of_a_size(client: OpenAI) -> None:
    assert opened(bytes_of(client.images.generate(prompt=PROMPT, size="128x64"))).size == (128, 64)  # type: ignore[call-overload]
    assert opened(bytes_of(client.images.generate(prompt=PROMPT, size="auto"))).size == (128, 128)


@call
def generate_of_a_size_that_the_model_does_not_make(client: OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, size="1536x1024")
    size = opened(bytes_of(answer)).size
    assert warnings(answer) == ["size"]
    assert answer.size == f"{size[0]}x{size[1]}"
    assert abs(size[0] / size[1] - 1.5) < 0.15


@call
def generate_in_every_format(client: OpenAI) -> None:
    reference = apple(client)
    for name in ("png", "jpeg", "webp"):
        answer = client.images.generate(prompt=PROMPT, output_format=name, extra_body={"seed": 7})  # type: ignore[call-overload]
        assert opened(bytes_of(answer)).format == name.upper()
        assert difference(bytes_of(answer), reference) < LIKE
        assert answer.output_format == name


@call
def generate_compressed(client: OpenAI) -> None:
    sizes = [
        len(
            bytes_of(
                client.images.generate(
                    prompt=PROMPT, output_format="jpeg", output_compression=quality, extra_body={"seed": 7}
                )
            )
        )
        for quality in (10, 90)
    ]
    assert sizes[0] < sizes[1]


@call
def generate_with_everything_that_makes_no_difference(client: OpenAI) -> None:
    """It says so, and makes the same picture."""
    answer = client.images.generate(
        prompt=PROMPT,
        model="gpt-image-2",
        quality="low",
        background="transparent",
        moderation="low",
        output_compression=50,
        user="user-1",
        style="vivid",
        extra_body={"seed": 7, "guidance": 3.0},
    )
    assert sorted(warnings(answer)) == [
        "background",
        "guidance",
        "model",
        "output_compression",
        "quality",
        "style",
    ]
    assert answer.quality == "low"
    assert answer.background == "opaque"
    assert bytes_of(answer) == apple(client)


@call
def generate_with_a_url(client: OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, response_format="url", extra_body={"seed": 7})
    assert answer.data
    assert answer.data[0].b64_json is None
    assert answer.data[0].url
    fetched = httpx2.get(answer.data[0].url, trust_env=False)
    assert fetched.headers["content-type"] == "image/png"
    assert fetched.content == apple(client)


@call
def generate_with_our_own_fields(client: OpenAI) -> None:
    file = apple(client)
    few = client.images.generate(prompt=PROMPT, extra_body={"seed": 7, "steps": 2})
    assert bytes_of(few) != file
    edited = client.images.generate(prompt=EDIT, extra_body={"seed": 7, "references": [data_url(file)]})
    same = bytes_of(client.images.edit(image=file, prompt=EDIT, extra_body={"seed": 7}))
    assert difference(bytes_of(edited), same) == 0


@call
def strict_refuses_what_makes_no_difference(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as refused:
        client.images.generate(prompt=PROMPT, quality="low", extra_body={"strict": True})
    error = refused.value
    assert (error.status_code, error.param, error.code) == (400, "quality", "unsupported_parameter")
    assert bytes_of(client.images.generate(prompt=PROMPT, extra_body={"strict": True}))


@call
def edit(client: OpenAI) -> None:
    """The background changes, the apple in the middle stays."""
    before = apple(client)
    answer = client.images.edit(image=("apple.png", before, "image/png"), prompt=EDIT, extra_body={"seed": 1})
    after = bytes_of(answer)
    corner, middle = ((0, 0, 24, 24), (52, 52, 76, 76))
    assert difference(opened(before).crop(corner), opened(after).crop(corner)) > 40
    assert difference(opened(before).crop(middle), opened(after).crop(middle)) < 25
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens > 0


@call
def edit_several(client: OpenAI) -> None:
    fox = bytes_of(client.images.generate(prompt="a fox on a mint background", extra_body={"seed": 7}))
    answer = client.images.edit(
        image=[("fox.png", fox, "image/png"), ("apple.png", apple(client), "image/png")],
        prompt="put the object of image 1 on the background of image 2",
        extra_body={"seed": 1},
    )
    corner = (0, 0, 128, 16)
    made, beach = opened(bytes_of(answer)).crop(corner), opened(apple(client)).crop(corner)
    assert difference(made, beach) < difference(made, opened(fox).crop(corner))


@call
def edit_under_a_mask(client: OpenAI) -> None:
    """What the mask does not free stays."""
    before = apple(client)
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 128, 64))
    answer = client.images.edit(
        image=("apple.png", before, "image/png"),
        mask=("mask.png", png(mask), "image/png"),
        prompt=EDIT,
        extra_body={"seed": 1},
    )
    halves = {"upper": (0, 0, 128, 48), "lower": (0, 80, 128, 128)}
    changed = {
        name: difference(opened(before).crop(box), opened(bytes_of(answer)).crop(box)) for name, box in halves.items()
    }
    assert changed["upper"] > 20
    assert changed["lower"] < 1


@call
def edit_as_json(client: OpenAI) -> None:
    """By URL and by the id of a file: the same picture as with the file itself."""
    before = apple(client)
    with_file = bytes_of(client.images.edit(image=before, prompt=EDIT, extra_body={"seed": 1}))
    uploaded = client.files.create(file=("apple.png", before), purpose="vision")
    for source in ({"image_url": data_url(before)}, {"file_id": uploaded.id}):
        body = {"prompt": EDIT, "images": [source], "seed": 1}
        answer = client.post("/images/edits", body=body, cast_to=ImagesResponse)
        assert difference(bytes_of(answer), with_file) == 0
    client.files.delete(uploaded.id)


@call
def vary(client: OpenAI) -> None:
    """Without a word it shows the same thing on the same background, in a place and size that are left to the seed."""
    for prompt, thing, ground in ((PROMPT, "apple", "beach"), ("a fox on a mint background", "fox", "mint")):
        given = bytes_of(client.images.generate(prompt=prompt, extra_body={"seed": 7}))
        right = list(somewhere(NOUN_BY_NAME[thing], (ground,), NATIVE))
        image = ("given.png", given, "image/png")
        with pytest.warns(DeprecationWarning, match="deprecated"):  # the package says that of OpenAI's own
            answer = client.images.create_variation(image=image, n=2, response_format="b64_json")
        files = [bytes_of(answer, index) for index in range(2)]
        assert files[0] != files[1]
        for pixels in (np.asarray(opened(file).convert("RGB")) for file in files):
            assert judge_any(pixels, right).all_right


@call
def what_a_prompt_leaves_open(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a fox", n=2, extra_body={"seed": 7})
    assert [each.revised_prompt for each in answer.data or ()] == [settle("a fox", 7), settle("a fox", 8)]
    said = client.images.generate(prompt=PROMPT, extra_body={"seed": 7})
    assert [each.revised_prompt for each in said.data or ()] == [None]


@call
def models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["nano"]
    model = client.models.retrieve("nano")
    assert (model.object, model.owned_by) == ("model", "kleinbild")


@call
def files(client: OpenAI) -> None:
    made = client.files.create(
        file=("notes.txt", b"words"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.bytes, made.filename, made.purpose, made.status) == (5, "notes.txt", "user_data", "processed")
    assert made.expires_at == made.created_at + 3600
    assert client.files.retrieve(made.id).id == made.id
    assert client.files.content(made.id).content == b"words"
    assert made.id in [file.id for file in client.files.list(purpose="user_data", limit=1)]
    assert client.files.delete(made.id).deleted
    with pytest.raises(APIStatusError) as gone:
        client.files.retrieve(made.id)
    assert gone.value.status_code == 404


@call
def moderate(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as refused:
        client.moderations.create(input="a red apple")
    assert (refused.value.status_code, refused.value.code) == (501, "not_implemented")
