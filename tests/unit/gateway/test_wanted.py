"""From a body's fields to work: what is not honoured is said, what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from kleinbild.core.jobs import PictureRef
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.wanted import Pictures, Wanted, WantedEdit, read, work_anywhere, work_for
from kleinbild.providers.base import Capabilities

DISTILLED = Capabilities("nano", SizeRange(64, 256, 256 * 256, 16), Size(128, 128), 4, guidance=False)
BASE = Capabilities("nano-base", SizeRange(64, 256, 256 * 256, 16), Size(128, 128), 25, guidance=True)
NOTHING = Pictures()


def wanted(**fields: Any) -> Wanted:
    return read(Wanted, {"prompt": "a fox", **fields})


def warned(can: Capabilities = DISTILLED, pictures: Pictures = NOTHING, **fields: Any) -> list[str]:
    """The fields that there are warnings of; `strict` refuses with the first of them."""
    _, warnings = work_for(wanted(**fields), pictures, can)
    names = [warning.partition(":")[0] for warning in warnings]
    if names:
        with pytest.raises(ApiError) as caught:
            work_for(wanted(**fields, strict=True), pictures, can)
        assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")
        assert caught.value.param == names[0]
    return names


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        wanted(**fields)
    assert caught.value.status == 400
    return caught.value


def test_a_prompt_is_enough_and_null_is_absent() -> None:
    work, warnings = work_for(wanted(size=None, seed=None, user=None), NOTHING, DISTILLED)
    assert (work.task, work.prompt, work.model, work.n, work.size) == ("image.generate", "a fox", "nano", 1, None)
    assert warnings == ()


def test_a_seed_is_settled_and_another_each_time() -> None:
    seeds = {work_for(wanted(), NOTHING, DISTILLED)[0].seed for _ in range(20)}
    assert len(seeds) == 20
    assert work_for(wanted(seed=0), NOTHING, DISTILLED)[0].seed == 0


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"quality": "standard"}, []),
        ({"quality": "high"}, ["quality"]),
        ({"background": "opaque"}, []),
        ({"background": "transparent"}, ["background"]),
        ({"output_format": "jpeg", "output_compression": 50}, []),
        ({"output_compression": 50}, ["output_compression"]),
        ({"partial_images": 2, "stream": True}, []),
        ({"partial_images": 2}, ["partial_images"]),
        ({"guidance": 1}, []),
        ({"guidance": 3}, ["guidance"]),
        ({"style": "vivid"}, ["style"]),
        ({"strength": 0.5}, ["strength"]),
        ({"adapters": ["mine"]}, []),
        ({"input_fidelity": "low", "quality": "hd"}, ["quality", "input_fidelity"]),
        ({"size": "1024x1024"}, ["size"]),
        ({"size": "128x96"}, []),
        ({"moderation": "low", "user": "u", "safety_identifier": "s"}, []),
    ],
)
def test_what_a_model_cannot_do_is_a_warning_and_refused_where_strict(fields: dict[str, Any], names: list[str]) -> None:
    assert warned(**fields) == names


def test_what_is_of_a_picture_that_is_given_is_lost_without_one() -> None:
    edit = Pictures((PictureRef("a"),))
    assert warned(DISTILLED, edit, strength=0.5, input_fidelity="high") == ["input_fidelity", "strength"]
    _, told = work_anywhere(wanted(strength=0.5, input_fidelity="high"), NOTHING, "sketch")
    assert [each.partition(":")[0] for each in told] == ["input_fidelity", "strength"]
    assert work_anywhere(wanted(strength=0.5, input_fidelity="high"), edit, "sketch")[1] == ()


def test_what_a_place_may_honour_is_in_the_work() -> None:
    given = wanted(strength=0.5, input_fidelity="high", moderation="low", background="transparent")
    work, _ = work_anywhere(given, Pictures((PictureRef("a"),)), "sketch")
    assert (work.strength, work.input_fidelity, work.moderation) == (0.5, "high", "low")
    assert work.background == "transparent"
    assert work_for(given, NOTHING, DISTILLED)[0].background == "opaque"


def test_a_base_model_has_guidance() -> None:
    assert warned(BASE, guidance=3) == []
    assert work_for(wanted(guidance=3), NOTHING, BASE)[0].guidance == 3
    assert work_for(wanted(guidance=3), NOTHING, DISTILLED)[0].guidance is None


def test_a_size_that_is_not_made_becomes_the_nearest_and_says_so() -> None:
    work, (warning,) = work_for(wanted(size="1536x1024"), NOTHING, DISTILLED)
    assert work.size is not None
    assert work.size.width > work.size.height
    assert str(work.size) in warning


def test_with_a_mask_the_picture_keeps_its_size() -> None:
    given = Pictures((PictureRef("a"),), PictureRef("m"))
    assert warned(DISTILLED, given, size="128x128") == ["size"]
    assert work_for(wanted(size="128x128"), given, DISTILLED)[0].size is None


def test_pictures_make_it_an_edit() -> None:
    given = Pictures((PictureRef("a"), PictureRef("b")))
    work, _ = work_for(wanted(), given, DISTILLED)
    assert (work.task, work.references) == ("image.edit", given.references)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": "many"}, "n", "invalid_value"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"output_compression": 101}, "output_compression", "invalid_value"),
        ({"partial_images": 4}, "partial_images", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"steps": 0}, "steps", "invalid_value"),
        ({"guidance": float("nan")}, "guidance", "invalid_value"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        (
            {"references": [{"image_url": "https://a.example/b.png", "file_id": "file_1"}]},
            "references.0",
            "invalid_value",
        ),
        ({"references": [{}]}, "references.0", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named_as_openai_names_it(fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(**fields)
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert param in error.message


@pytest.mark.parametrize("size", ["big", "0x64", "-16x64", "64", "64x64x64"])
def test_a_size_that_is_none(size: str) -> None:
    with pytest.raises(ApiError) as caught:
        work_for(wanted(size=size), NOTHING, DISTILLED)
    assert (caught.value.status, caught.value.param) == (400, "size")


def test_a_picture_may_be_a_bare_url_and_the_same_is_true_of_the_mask() -> None:
    edit = read(
        WantedEdit, {"prompt": "a", "images": ["https://a.example/b.png", {"file_id": "file_1"}], "mask": "data:,"}
    )
    assert [one.image_url for one in edit.images] == ["https://a.example/b.png", None]
    assert edit.mask is not None
    assert edit.mask.image_url == "data:,"


@pytest.mark.parametrize("wrong", [{"n": True}, {"n": "1"}, {"guidance": False}, {"keep": 0}, {"stream": "true"}])
def test_json_has_numbers_and_truth_values_of_its_own_and_a_form_has_text(wrong: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        read(Wanted, {"prompt": "a fox", **wrong})
    assert (refused.value.status, refused.value.param) == (400, next(iter(wrong)))
    form = read(Wanted, {"prompt": "a fox", "n": "2", "guidance": "1.5", "stream": "true"}, form=True)
    assert (form.n, form.guidance, form.stream) == (2, 1.5, True)
