"""The trainer end to end, in miniature: it learns, resumes to the same weights, and what it writes loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from kleinbild.core.errors import ModelError
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.catalog import PACKAGED
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.model.weights import load_model
from kleinbild.nano.scenes.lexicon import COLORS, NOUNS
from kleinbild.nano.scenes.oracle import psnr
from kleinbild.nano.scenes.render import NATIVE, Scene, render
from kleinbild.nano.scenes.tasks import is_held_out, samples
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_state, save_state
from kleinbild.train.muon import Muon, orthogonalize
from kleinbild.train.nano import autoencoder as autoencoder_training
from kleinbild.train.nano import distill, finish, flow, sharpen, stage
from kleinbild.train.nano import pool as pool_module
from kleinbild.train.nano.compute import Compute
from kleinbild.train.nano.export import export
from kleinbild.train.nano.metric import pixel_metric, root_of_loss
from kleinbild.train.nano.pool import (
    CHANGE_WEIGHT,
    KEPT_WEIGHT,
    Data,
    Pool,
    build_pool,
    draft,
    to_batch,
    to_tensor,
    training_draw,
    weights_of,
)
from kleinbild.train.nano.textures import random_texture
from kleinbild.train.nano.tokenizer import save_tokenizer, take_up_tokenizer, train_tokenizer
from kleinbild.train.nano.whole import Plan, train_all

CPU = torch.device("cpu")
HERE = Compute(CPU)
DATA = Data(num_scenes=120)


@pytest.fixture(scope="module", autouse=True)
def none_are_measured() -> Iterator[None]:
    """What an error does to the picture takes 16 s for a pool: one test measures it, the others count all channels alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "pixel_metric", lambda _autoencoder, latents_BCrc: torch.eye(latents_BCrc.shape[1]))
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with a random autoencoder and the tokenizer."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = Autoencoder(NANO.autoencoder)
    autoencoder_training.initialize(model)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / "autoencoder.safetensors"
    )
    save_tokenizer(train_tokenizer(), out / "tokenizer")
    return out


@pytest.fixture(scope="module")
def pool(run_folder: Path) -> Pool:
    model = flow.load_autoencoder(run_folder / "autoencoder.safetensors", NANO.autoencoder, CPU)
    return build_pool(model, DATA, 1, HERE, run_folder / "pool.pt")


@pytest.fixture(scope="module")
def tokenizer(run_folder: Path) -> PromptTokenizer:
    return PromptTokenizer(run_folder / "tokenizer", NANO.text_encoder.max_tokens)


def test_orthogonalize_brings_singular_values_near_one() -> None:
    for shape in ((3, 40, 24), (2, 24, 40)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
        assert 0.5 < values.min() < values.max() < 1.3


def test_muon_descends() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(8, 8), torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (weight - target).square().mean().backward()
        optimizer.step()
    assert (weight.detach() - target).square().mean() < 0.1 * target.square().mean()


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def dies(state: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}


def test_a_pool_holds_no_combination_kept_for_evaluation(pool: Pool) -> None:
    for grid, topics in pool.by_topic.items():
        assert all(not is_held_out(sample) for samples in topics.values() for sample in samples)
        assert all(sample.target.grid == grid for samples in topics.values() for sample in samples)
    assert sum(map(len, pool.latents_SNC.values())) == len(pool.index) >= DATA.num_scenes
    assert len(pool.latents_SNC) > 1


def test_a_batch_follows_its_seed(pool: Pool, tokenizer: PromptTokenizer) -> None:
    for seed in range(6):
        first, again = (
            to_batch(pool, draft(pool, flow.SHARES[2], 6, Random(seed), tokenizer, dropout=0.5)) for _ in range(2)
        )
        assert torch.equal(first.ids_BL, again.ids_BL)
        assert torch.equal(first.references_BKC, again.references_BKC)
        num_tokens = first.grid[0] * first.grid[1]
        count = round(6 * 64 / num_tokens)  # as much work, whatever the size
        assert first.references_BKC.shape == (count, 2 * num_tokens, 128)
        assert first.target_BNC.shape == first.noise_BNC.shape == (count, num_tokens, 128)


def test_what_changes_counts_more(pool: Pool) -> None:
    removal = next(sample for sample in pool.by_topic[NATIVE]["remove"])
    weights = weights_of(removal.target, removal.references).unflatten(0, NATIVE)
    (gone,) = set(removal.references[0].placed) - set(removal.target.placed)
    assert weights.mean() == pytest.approx(1)
    assert weights[gone.row, gone.column] == pytest.approx(CHANGE_WEIGHT * weights.min())
    elsewhere = next(sample for sample in pool.by_topic[NATIVE]["background"])
    weights = weights_of(elsewhere.target, elsewhere.references).unflatten(0, NATIVE)
    for kept in elsewhere.target.placed:
        assert weights[kept.row, kept.column] == pytest.approx(KEPT_WEIGHT * weights.min())


def test_a_name_reads_the_same_wherever_it_stands() -> None:
    packaged = Tokenizer.from_file(str(PACKAGED / "tokenizer" / "tokenizer.json"))
    for tokenizer in (train_tokenizer(), packaged):
        for noun in NOUNS:
            colored = [f"{color} {name}" for name in noun.names for color in COLORS]
            for name in (*noun.names, *noun.plurals, *colored):
                first = tokenizer.encode(f"{name.capitalize()}, teal").tokens
                assert first == tokenizer.encode(f"the {name}, teal").tokens[1:], name


def test_new_words_are_read_whole_and_the_old_ones_as_before(tmp_path: Path) -> None:
    state = json.loads(train_tokenizer().to_str())
    state["model"]["vocab"] = {word: id_ for word, id_ in state["model"]["vocab"].items() if id_ < 300}
    state["model"]["merges"] = [
        pair for pair in state["model"]["merges"] if {*pair, "".join(pair)} <= set(state["model"]["vocab"])
    ]
    before = Tokenizer.from_str(json.dumps(state))
    save_tokenizer(before, tmp_path / "before")
    new = NOUNS[-3:]
    pieces = take_up_tokenizer(tmp_path / "before", tmp_path / "after", new)
    after = Tokenizer.from_file(str(tmp_path / "after" / "tokenizer.json"))
    rows = flow.widened(torch.randn(300, 4), pieces, 320)
    for noun in new:
        cut, (whole,) = (each.encode(f"a {noun.name}").ids[1:] for each in (before, after))
        assert pieces[whole] == cut
        assert torch.allclose(rows[whole], rows[cut].mean(dim=0))
    for noun in NOUNS[:-3]:
        assert before.encode(f"add a {noun.name}").ids == after.encode(f"add a {noun.name}").ids


def test_a_few_steps_lower_the_loss(pool: Pool, tokenizer: PromptTokenizer) -> None:
    torch.manual_seed(0)
    run = flow.begin(flow.Flow(NANO))
    batch = to_batch(pool, draft(pool, flow.SHARES[1], 4, Random(0), tokenizer))
    times = torch.full((len(batch.ids_BL),), 0.8)
    losses = []
    for _ in range(8):
        loss = flow.flow_loss(run.flow, batch, times)
        flow.update(run, loss, 1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_training_resumes_to_the_same_weights(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(flow, "lesson_share", lambda _step: 0.0)  # lessons need a larger pool
    monkeypatch.setattr(flow, "rate_factor", lambda *_steps: 1.0)  # else it depends on the number of steps
    folders = [tmp_path / "straight", tmp_path / "resumed"]
    for folder in folders:
        folder.mkdir()
        save_file(load_file(run_folder / "autoencoder.safetensors"), folder / "autoencoder.safetensors")
    flow.train(folders[0], 4, DATA, HERE)
    flow.train(folders[1], 2, DATA, HERE)
    flow.train(folders[1], 4, DATA, HERE)
    straight, resumed = (load_state(folder / "flow.pt") for folder in folders)
    assert straight is not None
    assert resumed is not None
    assert straight["step"] == resumed["step"] == 4
    for name, tensor in straight["average"].items():
        assert torch.equal(tensor, resumed["average"][name]), name


def test_a_run_that_learns_from_other_data_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(flow, "lesson_share", lambda _step: 0.0)  # lessons need a larger pool
    save_file(load_file(run_folder / "autoencoder.safetensors"), tmp_path / "autoencoder.safetensors")
    flow.train(tmp_path, 1, DATA, HERE)
    with pytest.raises(SystemExit, match=r"began with Data\(seed=0,.* not Data\(seed=1,"):
        flow.train(tmp_path, 2, replace(DATA, seed=1), HERE)


def test_base_and_student_are_written_and_load(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(flow, "lesson_share", lambda _step: 0.0)  # lessons need a larger pool
    monkeypatch.setattr(distill, "BATCH_SIZES", (2, 2, 2))
    flow.train(run_folder, 2, DATA, HERE)
    distill.train(run_folder, 2, HERE)
    student, base_step, data = distill.begin_student(run_folder, CPU)
    assert (student.step, base_step, data) == (2, 2, DATA)  # goes on
    save_state(run_folder / "student.pt", {**student.state(), "base_step": 1})
    assert distill.begin_student(run_folder, CPU)[0].step == 0  # the base has gone on: its old student is of no use
    with pytest.raises(SystemExit, match="its base was another"):
        export(run_folder, tmp_path / "weights")
    distill.train(run_folder, 2, HERE)
    files = export(run_folder, tmp_path / "weights")
    assert {path.name for path in files} == {
        "nano.safetensors", "nano-base.safetensors", "text_encoder.safetensors", "autoencoder.safetensors"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in files) < 40_000_000
    (tmp_path / "further").mkdir()
    monkeypatch.setattr(
        flow, "train_tokenizer", lambda _seed: pytest.fail("weights know the vocabulary they began with")
    )
    flow.train(tmp_path / "further", flow.STARTED_STEP + 1, DATA, HERE, start=tmp_path / "weights")
    further = load_state(tmp_path / "further" / "flow.pt")
    assert further is not None
    assert further["step"] == flow.STARTED_STEP + 1
    began, goes_on = (folder / "tokenizer" / "tokenizer.json" for folder in (run_folder, tmp_path / "further"))
    assert goes_on.read_bytes() == began.read_bytes()
    model = load_model(tmp_path / "weights" / "nano.safetensors")
    assert model.settings.distilled
    state = load_state(run_folder / "student.pt")
    assert state is not None
    trained = state["average"]["transformer.img_in.weight"].to(torch.bfloat16).float()
    assert torch.equal(model.transformer.img_in.weight.float(), trained)


def test_an_exported_student_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "BATCH_SIZES", (2, 2, 2))
    out = tmp_path / "run"
    distill.take_up(PACKAGED, out, base_step=5, updates=7, data=DATA)
    base, student = load_state(out / "flow.pt"), load_state(out / "student.pt")
    assert base is not None
    assert student is not None
    for state, file in ((base, "nano-base.safetensors"), (student, "nano.safetensors")):
        weight = load_file(PACKAGED / file)["img_in.weight"].float()
        assert torch.equal(state["average"]["transformer.img_in.weight"], weight)
    distill.train(out, 8, HERE)
    run, base_step, data = distill.begin_student(out, CPU)
    assert (run.step, base_step, data) == (8, 5, DATA)
    distill.take_up(PACKAGED, out, base_step=5, updates=7, data=DATA)  # once more: the run goes on
    assert distill.begin_student(out, CPU)[0].step == 8
    assert len(export(out, tmp_path / "weights")) == 4


def test_one_command_trains_all_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder_training, "CROP_BATCH", 2)
    monkeypatch.setattr(autoencoder_training, "NUM_MEASURED", 32)
    monkeypatch.setattr(flow, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(flow, "lesson_share", lambda _step: 0.0)  # lessons need a larger pool
    monkeypatch.setattr(distill, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(finish, "NUM_OWN", 4)
    plan = Plan(minutes=0.02, sharpen_steps=1, steps=2, updates=1, finish_steps=1, data=DATA)
    files = train_all(tmp_path, plan, HERE)
    assert load_model(tmp_path / "weights" / "nano.safetensors").settings.distilled
    made = {path.name: path.read_bytes() for path in files}
    assert {path.name: path.read_bytes() for path in train_all(tmp_path, plan, HERE)} == made  # nothing is left to do
    train_all(tmp_path, replace(plan, steps=3), HERE)
    state = load_state(tmp_path / "flow.pt")
    assert state is not None
    assert state["step"] == 3
    further = train_all(tmp_path / "further", replace(plan, steps=1, start=tmp_path / "weights"), HERE)
    assert not (tmp_path / "further" / autoencoder_training.ROUGH).exists()
    assert all(path.read_bytes() != made[path.name] for path in further)
    with pytest.raises(ModelError, match="no weights of nano to go on from"):
        train_all(tmp_path / "astray", replace(plan, start=tmp_path / "nowhere"), HERE)


def test_each_stretch_of_steps_has_scenes_of_its_own(run_folder: Path, tmp_path: Path) -> None:
    autoencoder = flow.load_autoencoder(run_folder / "autoencoder.safetensors", NANO.autoencoder, CPU)
    data = replace(DATA, num_scenes=20, steps_a_pool=3)
    first, *others = flow.stretches(autoencoder, data, range(4, 10), HERE, tmp_path / "pool.pt")
    assert [list(steps) for _, steps in (first, *others)] == [[4, 5], [6, 7, 8], [9]]
    assert all(first[0].index.keys() != pool.index.keys() for pool, _ in others)
    (again, steps), *_ = flow.stretches(autoencoder, data, range(5, 6), HERE, tmp_path / "pool.pt")
    assert list(steps) == [5]
    assert again.index == first[0].index


def test_other_processes_draw_the_same_in_the_same_order() -> None:
    draw = partial(sharpen.draw, 5, 1)
    ahead = list(Compute(CPU, workers=2).drawn(draw, range(3, 7)))
    for drawn, step in zip(ahead, range(3, 7), strict=True):
        assert np.array_equal(drawn.pictures_BHWC, draw(step).pictures_BHWC)
        assert drawn.noise_seed == draw(step).noise_seed


def test_a_larger_step_holds_as_many_times_the_pictures(pool: Pool, tokenizer: PromptTokenizer) -> None:
    sizes = Compute(CPU, scale=3).scaled(flow.BATCH_SIZES)
    for step in range(5000, 5006):
        (kind, usual), (_, large) = (flow.lesson(pool, 0, each, tokenizer, step) for each in (flow.BATCH_SIZES, sizes))
        assert len(large.references[0]) == kind
        assert len(large.targets) == pytest.approx(3 * len(usual.targets), abs=3)  # rounded at other sizes
    few, many = (sharpen.draw(0, scale, 1) for scale in (1, 2))
    assert len(many.pictures_BHWC) == 2 * len(few.pictures_BHWC)


def test_a_gpu_is_fed_by_the_cores() -> None:
    assert Compute.on(CPU) == HERE
    with_gpu = Compute.on(torch.device("cuda"))
    assert with_gpu.scale > 1
    assert with_gpu.workers >= 1


def test_sharpening_goes_on_to_the_same_weights(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "rate_factor", lambda *_steps: 1.0)  # else it depends on the number of steps
    monkeypatch.setattr(sharpen, "SCENES", 2)
    monkeypatch.setattr(sharpen, "TEXTURES", 1)
    start = run_folder / "autoencoder.safetensors"
    sharpen.train(tmp_path / "straight", start, 4, 0, HERE)
    sharpen.train(tmp_path / "resumed", start, 2, 0, HERE)
    sharpen.train(tmp_path / "resumed", start, 4, 0, HERE)
    before = load_file(start)
    straight, resumed = (load_file(tmp_path / name / "autoencoder.safetensors") for name in ("straight", "resumed"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    changed = {name.split(".")[0] for name, tensor in straight.items() if not torch.equal(tensor, before[name])}
    assert changed == {"encoder", "decoder"}  # not the latents' statistics


def test_sharpening_begins_anew_from_other_weights(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharpen, "SCENES", 1)
    monkeypatch.setattr(sharpen, "TEXTURES", 1)
    own = run_folder / "autoencoder.safetensors"
    sharpen.train(tmp_path / "anew", own, 1, 0, HERE)
    for name in ("anew", "alone"):
        sharpen.train(tmp_path / name, PACKAGED / "autoencoder.safetensors", 1, 0, HERE)
    anew, alone = (load_file(tmp_path / name / "autoencoder.safetensors") for name in ("anew", "alone"))
    assert all(torch.equal(tensor, anew[name]) for name, tensor in alone.items())


def test_sharpening_keeps_more_of_textures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "WARMUP_STEPS", 1)
    monkeypatch.setattr(sharpen, "SCENES", 1)
    monkeypatch.setattr(sharpen, "TEXTURES", 3)
    start, generator = PACKAGED / "autoencoder.safetensors", np.random.default_rng(9)
    textures = to_tensor(np.stack([random_texture(generator, 64) for _ in range(4)]))
    model = flow.load_autoencoder(start, NANO.autoencoder, CPU)
    model.decoder.conv_out.weight.mul_(0.5)  # spoilt: the packaged one has little left to learn
    spoilt = autoencoder_training.psnr(model, textures)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "spoilt.safetensors")
    sharpen.train(tmp_path, tmp_path / "spoilt.safetensors", 12, 0, HERE)
    model = flow.load_autoencoder(tmp_path / "autoencoder.safetensors", NANO.autoencoder, CPU)
    assert autoencoder_training.psnr(model, textures) > spoilt + 0.5


def test_a_sharpened_autoencoder_stays_where_a_run_starts_from_weights(tmp_path: Path) -> None:
    (tmp_path / "autoencoder.safetensors").write_bytes(b"sharpened")
    flow.start_from(PACKAGED, tmp_path, flow.Flow(NANO))
    assert (tmp_path / "autoencoder.safetensors").read_bytes() == b"sharpened"


def test_the_last_stage_goes_on_to_the_same_weights(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(flow, "lesson_share", lambda _step: 0.0)  # lessons need a larger pool
    monkeypatch.setattr(distill, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(finish, "BATCH_SIZES", (2, 2, 2))
    monkeypatch.setattr(finish, "NUM_OWN", 4)
    monkeypatch.setattr(stage, "rate_factor", lambda *_steps: 1.0)  # else it depends on the number of steps
    folders = [tmp_path / "straight", tmp_path / "resumed"]
    for folder in folders:
        shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("*.pt"))
        with pytest.raises(SystemExit, match="no student"):
            finish.train(folder, 1, HERE)
        flow.train(folder, 1, DATA, HERE)
        distill.train(folder, 1, HERE)
    finish.train(folders[0], 4, HERE)
    finish.train(folders[1], 2, HERE)
    finish.train(folders[1], 4, HERE)
    straight, resumed = (state["autoencoder"] for folder in folders if (state := load_state(folder / "finish.pt")))
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name
    export(folders[0], tmp_path / "weights")
    before, after = (load_file(path / "autoencoder.safetensors") for path in (folders[0], tmp_path / "weights"))
    changed = {name for name in after if not torch.equal(before[name].to(after[name].dtype), after[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder", "decoder"}  # not the latents' statistics


def test_the_box_loss_is_what_the_psnr_in_the_boxes_counts() -> None:
    things = (s.target for s in samples(training_draw(Random(1))) if s.target.grid == NATIVE and s.target.placed)
    scenes = [*islice(things, 3), Scene("mint")]
    wanted_BHWC = np.stack([render(each) for each in scenes])
    random = np.random.default_rng(0)
    spoilt_BHWC = (wanted_BHWC + random.normal(0, 20, wanted_BHWC.shape)).round().clip(0, 255).astype(np.uint8)
    boxes = [(number, *box) for number, each in enumerate(scenes) for box in finish.boxes_of(each)]
    loss = finish.box_loss(to_tensor(spoilt_BHWC), to_tensor(wanted_BHWC), boxes)
    decibels = [psnr(spoilt_BHWC[box], wanted_BHWC[box]) for box in boxes]
    assert float(loss) == pytest.approx(float(np.log(4 * 10 ** (-np.mean(decibels) / 10))), abs=0.01)


def test_the_last_stage_counts_textures_by_their_psnr_too() -> None:
    drawn = finish.draw([Scene("mint")], 0, 1, 0)
    whole = [number for number, rows, columns in drawn.boxes if (rows, columns) == finish.WHOLE]
    assert whole == [*range(finish.OWN), *range(finish.OWN + finish.SCENES, len(drawn.pictures_BHWC))]
    assert len(drawn.pictures_BHWC) == finish.OWN + finish.SCENES + finish.TEXTURES


def test_a_pool_measures_how_much_an_error_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "pixel_metric", pixel_metric)
    monkeypatch.setattr(pool_module, "NUM_MEASURED", 1)
    model = flow.load_autoencoder(PACKAGED / "autoencoder.safetensors", NANO.autoencoder, CPU)
    pool = build_pool(model, replace(DATA, num_scenes=10), 0, HERE, tmp_path / "pool.pt")
    first_BCrc = pool.latents_SNC[NATIVE][:1].mT.unflatten(2, NATIVE)
    assert torch.allclose(pool.root_CC, root_of_loss(pixel_metric(model, first_BCrc)), atol=1e-4)
    assert not torch.allclose(pool.root_CC, torch.eye(128), atol=0.1)


def test_the_metric_tells_how_much_an_error_shows() -> None:
    model = flow.load_autoencoder(PACKAGED / "autoencoder.safetensors", NANO.autoencoder, CPU)
    scenes = list(islice((s.target for s in samples(training_draw(Random(2))) if s.target.grid == NATIVE), 4))
    latents_BCrc = model.encode(to_tensor(np.stack([render(each) for each in scenes])))
    metric_CC = pixel_metric(model, latents_BCrc[:1])
    values, vectors = torch.linalg.eigh(metric_CC)
    shade, detail = vectors[:, -1], vectors[:, 10]

    def shows(direction_C: torch.Tensor) -> float:
        moved = model.decode(latents_BCrc[1:] + 0.3 * direction_C[:, None, None]) - model.decode(latents_BCrc[1:])
        return float(moved.square().mean())

    assert values[-1] > 30 * values.median()
    assert shows(shade) > 15 * shows(detail)  # of other pictures
    root_CC = root_of_loss(metric_CC)
    white = torch.randn(20_000, 128, generator=torch.Generator().manual_seed(0))
    assert float((white @ root_CC).square().mean()) == pytest.approx(1, rel=0.03)
    assert float((shade @ root_CC).square().sum()) == pytest.approx(float(1 + values[-1]) / 2, rel=0.01)


def test_textures_are_pictures_of_their_own() -> None:
    textures = [random_texture(np.random.default_rng(seed), 128) for seed in range(30)]
    assert all(np.array_equal(texture, random_texture(np.random.default_rng(3), 128)) for texture in textures[3:4])
    assert all(texture.shape == (128, 128, 3) and texture.dtype == np.uint8 for texture in textures)
    flat = [texture.std(axis=(0, 1)).max() == 0 for texture in textures]
    assert 0 < sum(flat) < 10
    assert np.mean([texture.std() for texture in textures]) > 20
    gray = [np.ptp(texture.astype(int), axis=2).max() <= 1 for texture in textures]
    assert 0 < sum(gray) < 15


@pytest.mark.alone
def test_the_autoencoder_learns_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder_training, "CROP_BATCH", 4)
    monkeypatch.setattr(autoencoder_training, "WHOLE_BATCH", 1)
    monkeypatch.setattr(autoencoder_training, "NUM_MEASURED", 64)
    autoencoder_training.train(tmp_path, minutes=0.05)
    model = flow.load_autoencoder(tmp_path / autoencoder_training.ROUGH, NANO.autoencoder, CPU)
    pictures = to_tensor(autoencoder_training.random_scenes(np.random.default_rng(9), 4, 64))
    fresh = Autoencoder(NANO.autoencoder)
    assert autoencoder_training.psnr(model, pictures) > autoencoder_training.psnr(fresh, pictures) + 1
