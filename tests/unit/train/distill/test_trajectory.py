"""Stage 1: the student comes to where the teacher's many steps lead, guidance included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kleinbild.model.schedule import times
from kleinbild.model.weights import Model
from kleinbild.train.distill.field import Field, Guided, Sample, finer, integrate, noise
from kleinbild.train.distill.guards import Measured
from kleinbild.train.distill.job import run_of
from kleinbild.train.distill.loop import learning_rate
from kleinbild.train.distill.recipe import Recipe
from kleinbild.train.distill.rollouts import Rollouts, ways
from kleinbild.train.distill.samples import context_of
from kleinbild.train.distill.trajectory import arrive, errors, few_steps, lessons
from tests.unit.train.distill.tiny import QUICK

CPU = torch.device("cpu")
MEAN, SPREAD = 0.7, 0.5
SAMPLE = Sample((2, 2), torch.zeros(1, 1))


def gaussian(_samples: Sequence[Sample], latents: Sequence[Tensor], now: Sequence[float]) -> list[Tensor]:
    """The velocity of the flow from noise to pictures that are normal with `MEAN` and `SPREAD`."""
    velocities = []
    for x_NC, t in zip(latents, now, strict=True):
        gain = (1 - t) * SPREAD**2 / ((1 - t) ** 2 * SPREAD**2 + t**2)
        velocities.append((x_NC - MEAN - gain * (x_NC - (1 - t) * MEAN)) / t)
    return velocities


def exact(noise_NC: Tensor, t: float) -> Tensor:
    return (1 - t) * MEAN + ((1 - t) ** 2 * SPREAD**2 + t**2) ** 0.5 * noise_NC


class Affine(nn.Module):
    """A student that can be right: in each window the way is an affine function of where it began."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.zeros(4, 2))

    def forward(self, samples: Sequence[Sample], latents: Sequence[Tensor], now: Sequence[float]) -> list[Tensor]:
        windows = [times(sample.num_tokens, 4).index(t) for sample, t in zip(samples, now, strict=True)]
        return [self.numbers[k, 0] * x_NC + self.numbers[k, 1] for k, x_NC in zip(windows, latents, strict=True)]


def test_the_teachers_steps_lie_within_the_students_own() -> None:
    student = times(64, 4)
    joined = [t for window in range(4) for t in finer(64, 4, window, 6)]
    assert joined[::7] == list(student[:-1])
    assert joined[6::7] == list(student[1:])
    assert all(
        later < earlier
        for window in range(4)
        for earlier, later in zip(*(finer(64, 4, window, 6)[i:] for i in (0, 1)), strict=False)
    )


def test_the_student_reaches_the_teachers_endpoints_in_four_steps() -> None:
    recipe = replace(QUICK, batch_size=16, num_substeps=32, num_rollouts=64, num_updates=150)
    student, rollouts = Affine(), Rollouts(gaussian, [SAMPLE], recipe, 8, CPU)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    drawn = [noise(SAMPLE, 8, seed, CPU) for seed in range(4)]

    def distance(end_time: int) -> float:
        at = arrive(student, [(SAMPLE, end_time, noise_NC) for noise_NC in drawn], 4)
        wanted = [exact(noise_NC, times(4, 4)[end_time]) for noise_NC in drawn]
        return float(torch.stack([(a - w).square().mean().sqrt() for a, w in zip(at, wanted, strict=True)]).mean())

    before = [distance(k) for k in range(1, 4)]
    for step in range(recipe.num_updates):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / recipe.num_updates)
        loss = torch.stack(errors(student, lessons(student, rollouts, step, step / 150), recipe)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(distance(k) < 0.1 * was for k, was in enumerate(before, 1))
    ends = few_steps(student, [SAMPLE] * 4, drawn, 4)
    worst = max(float((end - exact(noise_NC, 0.0)).abs().max()) for end, noise_NC in zip(ends, drawn, strict=True))
    assert worst < 0.1, "the teacher's 128 steps are that far from the exact way, too"


def test_guidance_is_in_the_students_weights(tiny: Model, samples: list[Sample]) -> None:
    recipe = replace(QUICK, num_updates=60, batch_size=6, num_substeps=4, num_rollouts=36, rate=4e-3, ema_decay=0.9)
    run = run_of(tiny, (), samples[:1], recipe)
    before = run.examination.measure(run.student.field)
    for step in range(recipe.num_updates):
        given = lessons(run.student.field, run.rollouts, step, step / recipe.num_updates)
        run.student.update(
            torch.stack(errors(run.student.field, given, recipe)).mean(), learning_rate(recipe, step), recipe
        )
    with run.student.averaged() as student:
        after = run.examination.measure(student)
    assert after.distance < before.distance / 2
    assert after.by_window[2] < before.by_window[2]


def test_guidance_is_what_the_engine_does_and_only_below_its_time(tiny: Model, samples: list[Sample]) -> None:
    field, empty_LX = Field(tiny.transformer), context_of(tiny, "")
    guided = Guided(field, empty_LX, 3.0, 0.98)
    latents = [noise(sample, 128, seed, CPU) for seed, sample in enumerate(samples)]
    now = [0.5, 0.99, 0.3, 0.97]
    plain = field(samples, latents, now)
    of_empty = field.under([empty_LX] * 4, samples, latents, now)
    for i, velocity in enumerate(guided(samples, latents, now)):
        wanted = plain[i] if now[i] >= 0.98 else of_empty[i] + 3.0 * (plain[i] - of_empty[i])
        torch.testing.assert_close(velocity, wanted, rtol=1e-4, atol=1e-4)


def test_company_in_a_pass_changes_nothing(tiny: Model, samples: list[Sample]) -> None:
    field = Field(tiny.transformer)
    latents = [noise(sample, 128, seed, CPU) for seed, sample in enumerate(samples)]
    together = field(samples, latents, [0.9, 0.4, 0.7, 1.0])
    for i, (sample, time) in enumerate(zip(samples, (0.9, 0.4, 0.7, 1.0), strict=True)):
        torch.testing.assert_close(together[i], field([sample], [latents[i]], [time])[0], rtol=1e-4, atol=1e-5)


def test_late_lessons_begin_where_the_student_itself_arrives(tiny: Model, samples: list[Sample]) -> None:
    recipe = replace(QUICK, batch_size=8, own_share=1.0)
    run = run_of(tiny, (), samples, recipe)
    asked: list[float] = []

    def student(of: Sequence[Sample], latents: Sequence[Tensor], now: Sequence[float]) -> list[Tensor]:
        asked.extend(now)
        return run.student.field(of, latents, now)

    lessons(student, run.rollouts, 0, 0.5)
    assert asked == []
    late = lessons(student, run.rollouts, 0, 0.9)
    assert len(asked) == sum(lesson.window for lesson in late)
    for lesson in late:
        times_of = [finer(lesson.sample.num_tokens, 4, lesson.window, recipe.num_substeps)]
        (end_NC,) = integrate(run.rollouts.teacher, [lesson.sample], [lesson.latent_NC], times_of)
        start, end = times(lesson.sample.num_tokens, 4)[lesson.window : lesson.window + 2]
        torch.testing.assert_close(lesson.latent_NC + (end - start) * lesson.wanted_NC, end_NC, rtol=1e-3, atol=1e-3)


def test_rollouts_are_replaced_bit_by_bit_and_computed_again_to_the_last_bit(
    tiny: Model, samples: list[Sample]
) -> None:
    run, again = (run_of(tiny, (), samples, QUICK).rollouts for _ in range(2))
    kept = {number: run.block(number) for number in (0, 1, 2)}
    for number in (2, 0):  # in another order, after others were forgotten
        for way, same in zip(again.block(number), kept[number], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(way.states, same.states, strict=True))
    assert not torch.equal(kept[0][0].states[0], kept[1][0].states[0])


@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_no_error_where_the_student_is_right(loss: str) -> None:
    recipe = replace(QUICK, loss=loss)  # type: ignore[arg-type]
    rollouts = Rollouts(gaussian, [SAMPLE], recipe, 8, CPU)
    given = lessons(gaussian, rollouts, 0, 0.0)
    right = {id(lesson.latent_NC): lesson.wanted_NC for lesson in given}
    assert [float(e) for e in errors(lambda _s, x, _t: [right[id(x_NC)] for x_NC in x], given, recipe)] == [0.0, 0.0]
    assert all(float(e) > 0 for e in errors(gaussian, given, recipe))


def test_ways_pass_through_the_students_times() -> None:
    recipe: Recipe = replace(QUICK, num_substeps=64)
    drawn = noise(SAMPLE, 8, 3, CPU)
    (way,) = ways(gaussian, [SAMPLE], [drawn], recipe)
    for state_NC, t in zip(way.states, times(4, 4), strict=True):
        torch.testing.assert_close(state_NC, exact(drawn, t), rtol=0.05, atol=0.05)


def test_what_is_measured_is_told_by_name() -> None:
    measured = Measured(0.1, (0.1,), 1.0, 0.0, None)
    assert measured.metrics() == {"distance": 0.1, "std_ratio": 1.0, "more_clipped": 0.0}
    assert measured.tripped() == ()
