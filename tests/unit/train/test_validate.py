"""The validation loss: the same whenever it is asked for, whatever the run's random streams have come to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from kleinbild.engine.encode import encode_picture
from kleinbild.engine.latents import to_tokens
from kleinbild.model.adapters.adapter import Adapter, Entry, LowRank
from kleinbild.model.adapters.applied import Use, bind
from kleinbild.model.weights import Model, load_model
from kleinbild.nano.scenes.render import Scene, render
from kleinbild.nano.scenes.tasks import scene
from kleinbild.train.data.cache import Encoded
from kleinbild.train.data.examples import Example
from kleinbild.train.validate import TIMES, Validation, hold_out

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> Model:
    torch.set_num_threads(1)
    return load_model("nano-base")


def encoded(
    model: Model, caption: str, target: Scene, *references: Scene, weights: torch.Tensor | None = None
) -> Encoded:
    def tokens(one: Scene) -> torch.Tensor:
        return to_tokens(encode_picture(model, Image.fromarray(render(one))))

    prompt = model.tokenizer(caption)
    return Encoded(
        example=Example(Path(f"{caption}.png"), caption, name=caption),
        target_NC=tokens(target),
        grid=(8, 8),
        references=tuple((tokens(one), (8, 8)) for one in references),
        contexts=(model.text_encoder(prompt.ids[None], prompt.mask[None])[0],),
        weights_N1=weights,
    )


@pytest.fixture(scope="module")
def samples(base: Model) -> list[Encoded]:
    fox, both = scene("white", ("1f98a", (1, 0))), scene("white", ("1f98a", (1, 0)), ("1f431", (1, 2)))
    return [encoded(base, "a fox on the left on white", fox), encoded(base, "add a cat on the right", both, fox)]


def noisy(base: Model, size: float) -> tuple[Use, ...]:
    generator = torch.Generator().manual_seed(0)
    layer = base.transformer.get_submodule("single_blocks.0.linear2")
    assert isinstance(layer, torch.nn.Linear)
    change = LowRank(
        torch.randn(4, layer.in_features, generator=generator),
        size * torch.randn(layer.out_features, 4, generator=generator),
    )
    return (Use(bind(Adapter((Entry("single_blocks.0.linear2", change),)), base.transformer)),)


def test_it_is_the_same_each_time_and_touches_no_random_stream(base: Model, samples: list[Encoded]) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = Validation(samples, 7).losses(base.transformer, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    validation = Validation(samples, 7)
    assert validation.losses(base.transformer, CPU) == validation.losses(base.transformer, CPU) == first
    assert Validation(samples, 8).losses(base.transformer, CPU) != first


def test_it_tells_the_loss_at_each_time_and_their_mean(base: Model, samples: list[Encoded]) -> None:
    losses = Validation(samples, 7).losses(base.transformer, CPU)
    assert list(losses.by_time) == [f"{time:g}" for time in TIMES]
    assert losses.mean == pytest.approx(sum(losses.by_time.values()) / len(TIMES))


def test_it_sees_what_an_adapter_spoils(base: Model, samples: list[Encoded]) -> None:
    validation = Validation(samples, 7)
    plain, spoilt = (validation.losses(base.transformer, CPU, uses) for uses in ((), noisy(base, 0.15)))
    assert spoilt.mean > 1.2 * plain.mean


def test_references_help_and_captions_do(base: Model, samples: list[Encoded]) -> None:
    """The model was trained on such edits: that what it is told makes its loss small says that all is in its place."""
    _, edit = samples
    blind = encoded(base, edit.example.caption, scene("white", ("1f98a", (1, 0)), ("1f431", (1, 2))))
    told, untold = (Validation([one], 7).losses(base.transformer, CPU) for one in (edit, blind))
    assert told.by_time["0.9"] < 0.5 * untold.by_time["0.9"]


def test_only_what_the_mask_lets_through_counts(base: Model, samples: list[Encoded]) -> None:
    fox, cat = scene("white", ("1f98a", (1, 0))), scene("white", ("1f98a", (1, 0)), ("1f431", (1, 2)))
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    prompt = "a fox on the left on white"
    right, wrong, masked = (
        Validation([encoded(base, prompt, target, weights=weights)], 7).losses(base.transformer, CPU).by_time["0.97"]
        for target, weights in ((fox, None), (cat, None), (cat, left.reshape(-1, 1)))
    )
    assert wrong > 1.3 * right
    assert abs(masked - right) < 0.5 * (wrong - right)


def test_one_in_ten_is_held_out_and_none_of_a_few() -> None:
    names = [f"{i:03}.png" for i in range(100)]
    training, validating = hold_out(names, names, seed=0)
    assert len(validating) == 8
    assert sorted((*training, *validating)) == names
    assert hold_out(names, names, seed=0) == (training, validating)
    assert hold_out(names, names, seed=1)[1] != validating
    training, validating = hold_out(names[:12], names[:12], seed=0)
    assert training == tuple(names[:12])
    assert len(validating) == 8
    assert set(validating) < set(training)
    assert len(hold_out(names[:40], names[:40], seed=0)[1]) == 4


def test_many_samples_are_measured_at_every_other_time_each(samples: list[Encoded]) -> None:
    measured = Validation(samples * 4, 7).by_time
    assert list(measured) == list(TIMES)
    assert {len(own) for own in measured.values()} == {4}
    assert {len(own) for own in Validation(samples, 7).by_time.values()} == {2}
