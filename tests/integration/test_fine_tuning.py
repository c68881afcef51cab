"""Fine-tuning as the `openai` package asks for it, at a server whose trainer is a process that stands in for the real one."""

from __future__ import annotations

import io
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from PIL import Image

from tests.integration.process import ServerProcess, server_process

ROOT = Path(__file__).parents[2]
STANDING_IN = """
from functools import partial
from kleinbild.gateway import serve
from kleinbild.providers.training import Trainer
serve.open_services = partial(serve.open_services, trainer=Trainer("tests.trainer"))
"""
WAIT_S, LONG_S = 60.0, 240.0
NOTHING: Mapping[str, Any] = MappingProxyType({})
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = ServerProcess(tmp_path_factory.mktemp("home"), {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    process.start(STANDING_IN)
    process.wait_until_ready()
    yield process
    process.stop()
    assert "Traceback" not in "".join(process.log), "".join(process.log)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pictures(num: int = 3) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for index in range(num):
            file = io.BytesIO()
            Image.new("RGB", (64, 64), (80 * index, 40, 40)).save(file, "PNG")
            archive.writestr(f"{index}.png", file.getvalue())
            archive.writestr(f"{index}.txt", "a fox on a mint background")
    return packed.getvalue()


def uploaded(client: openai.OpenAI, data: bytes, **fields: Any) -> str:
    return client.files.create(file=("pictures.zip", data), purpose="fine-tune", **fields).id


def created(
    client: openai.OpenAI, *, recipe: Mapping[str, Any] = NOTHING, steps: int = 4, **fields: Any
) -> FineTuningJob:
    given = {"model": "nano", "training_file": uploaded(client, pictures()), **fields}
    return client.fine_tuning.jobs.create(**given, extra_body={"recipe": {"steps": steps, **recipe}})


def until(
    client: openai.OpenAI, job_id: str, holds: Callable[[FineTuningJob], bool], seconds: float = WAIT_S
) -> FineTuningJob:
    deadline = time.monotonic() + seconds
    while not holds(job := client.fine_tuning.jobs.retrieve(job_id)):
        assert time.monotonic() < deadline, [event.message for event in client.fine_tuning.jobs.list_events(job_id)]
        time.sleep(0.05)
    return job


def ended(client: openai.OpenAI, job_id: str) -> FineTuningJob:
    return until(client, job_id, lambda job: job.status in ENDED)


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    """From the first to the last."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id)][::-1]


def has_stepped(client: openai.OpenAI, job_id: str) -> Callable[[FineTuningJob], bool]:
    return lambda _: any(message.startswith("Step ") for message in messages(client, job_id))


def starts(server: ServerProcess, job_id: str) -> list[int]:
    """The processes that have worked on it."""
    file = server.home / "server" / "fine-tuning" / job_id / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_a_model_of_ones_own_from_its_pictures_to_its_name(client: openai.OpenAI, server: ServerProcess) -> None:
    job = created(client, suffix="My Fox", seed=7, metadata={"team": "red"})
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "validating_files", "nano", 7)
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens, job.result_files) == (None, None, None, [])
    done = ended(client, job.id)
    assert (done.status, done.error, done.trained_tokens, done.metadata) == ("succeeded", None, 400, {"team": "red"})
    assert done.fine_tuned_model == f"ft:nano:my-fox-{job.id[-8:]}"
    assert done.finished_at is not None
    assert done.finished_at >= done.created_at
    said = messages(client, job.id)
    assert said[:3] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
    ]
    assert said[3] == "Fine-tuning job started"
    assert said[-2:] == [
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.retrieve(done.fine_tuned_model).owned_by == "local"
    names = [client.files.retrieve(each) for each in done.result_files]
    assert [(file.filename, file.purpose) for file in names] == [
        ("step_metrics.csv", "fine-tune-results"),
        (f"my-fox-{job.id[-8:]}.safetensors", "fine-tune-results"),
    ]
    table = client.files.content(done.result_files[0]).text.splitlines()
    assert table[:3] == ["step,train_loss,valid_loss,learning_rate", "1,1.0,,0.0001", "2,0.5,1.0,0.0001"]


def test_events_and_checkpoints_come_in_pages_from_the_newest(client: openai.OpenAI) -> None:
    job = ended(client, created(client).id)
    every = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    page = client.fine_tuning.jobs.list_events(job.id, limit=5)
    assert page.has_more
    assert [each.id for each in page.data] == [each.id for each in every[:5]]
    after = client.fine_tuning.jobs.list_events(job.id, limit=5, after=page.data[-1].id)
    assert [each.id for each in after.data] == [each.id for each in every[5:10]]
    assert [each.id for each in client.fine_tuning.jobs.list_events(job.id, limit=3)] == [each.id for each in every]
    metrics = [each for each in every if each.type == "metrics"]
    assert len(metrics) == 6
    assert [each.level for each in every if each.message == "few pictures were given"] == ["warn"]
    last, first = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert (last.step_number, first.step_number) == (4, 2)
    assert first.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-2"
    assert (first.metrics.step, first.metrics.full_valid_loss) == (2, 1.0)
    rest = client.fine_tuning.jobs.checkpoints.list(job.id, limit=1, after=last.id)
    assert [each.id for each in rest.data] == [first.id]


def test_the_list_is_the_newest_first_and_by_metadata(client: openai.OpenAI) -> None:
    jobs = [created(client, metadata={"n": str(n)}) for n in range(3)]
    listed = client.fine_tuning.jobs.list(limit=2)
    assert listed.has_more
    assert [each.id for each in listed.data] == [jobs[2].id, jobs[1].id]
    assert next(each.id for each in client.fine_tuning.jobs.list(limit=2, after=jobs[1].id)) == jobs[0].id
    assert [each.id for each in client.fine_tuning.jobs.list(metadata={"n": "1"})] == [jobs[1].id]
    assert [ended(client, each.id).status for each in jobs] == ["succeeded"] * 3


def test_one_trains_at_a_time(client: openai.OpenAI) -> None:
    first, second = created(client, steps=20), created(client, steps=2)
    until(client, first.id, lambda job: job.status == "running")
    assert until(client, second.id, lambda job: job.status != "validating_files").status == "queued"
    client.fine_tuning.jobs.cancel(first.id)
    assert ended(client, second.id).status == "succeeded"


def test_paused_it_keeps_its_state_and_resumed_it_goes_on(client: openai.OpenAI, server: ServerProcess) -> None:
    job = created(client, steps=20)
    until(client, job.id, has_stepped(client, job.id))
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    until(client, job.id, lambda _: any("job paused" in message for message in messages(client, job.id)))
    wait_until_gone(starts(server, job.id)[-1])  # it has said so, and is about to
    with pytest.raises(openai.BadRequestError, match="is paused and cannot be paused"):
        client.fine_tuning.jobs.pause(job.id)
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert ended(client, job.id).status == "succeeded"
    steps = [int(each.split("/")[0][5:]) for each in messages(client, job.id) if "training loss" in each]
    assert steps == list(range(1, 21))
    assert len(starts(server, job.id)) == 2


def test_cancelled_it_ends_and_gives_no_model(client: openai.OpenAI, server: ServerProcess) -> None:
    job = created(client, steps=100)
    until(client, job.id, has_stepped(client, job.id))
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    wait_until_gone(starts(server, job.id)[-1])
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is cancelled and cannot be cancelled"):
        client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(f"ft:nano:nano-{job.id[-8:]}")


def test_a_training_file_that_is_none_fails_the_job_in_words(client: openai.OpenAI) -> None:
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for data, words in ((b"no zip at all", "is no zip"), (empty.getvalue(), "no picture among the 1 files")):
        job = client.fine_tuning.jobs.create(model="nano", training_file=uploaded(client, data))
        failed = ended(client, job.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
        assert words in failed.error.message


def test_what_the_trainer_says_is_wrong_is_the_jobs_error(client: openai.OpenAI, server: ServerProcess) -> None:
    failed = ended(client, created(client, recipe={"rank": 13}).id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == (
        "failed",
        "RequestError",
        "a picture is damaged; leave it out",
    )
    dying = ended(client, created(client, recipe={"rank": 17}).id)
    assert dying.error is not None
    assert (dying.status, dying.error.code) == ("failed", "worker_ended")
    assert len(starts(server, dying.id)) == 3


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": "gpt-4o-mini"}, "model", "there are nano"),
        ({"training_file": "file_none"}, "training_file", "file_none"),
        ({"suffix": "x" * 65}, "suffix", "64"),
        ({"method": {"type": "dpo"}}, "method.type", "supervised"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "from 1 to"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "other services"),
        ({"extra_body": {"recipe": {"validation_data": "/etc"}}}, "recipe.validation_data", "validation_file"),
        ({"extra_body": {"recipe": "styl"}}, "recipe", "style"),
        ({"extra_body": {"recipe": {"rank": "many"}}}, "recipe", "rank"),
        ({"extra_body": {"recipe": {"wandb": "p"}}}, "recipe.wandb", "other services"),
        ({"extra_body": {"recipe": "full"}}, "recipe.method", "serves adapters"),
        ({"extra_body": {"recipe": {"data": "/etc"}}}, "recipe.data", "field"),
        ({"extra_body": {"recipe": {"regularization_data": "/etc"}}}, "recipe.regularization_data", "a folder reg"),
    ],
)
def test_what_is_wrong_is_refused_at_once(
    client: openai.OpenAI, fields: dict[str, Any], param: str, words: str
) -> None:
    given = {"model": "nano", "training_file": "file_none", **fields}
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.fine_tuning.jobs.create(**given)
    assert refused.value.param == param


def test_a_file_of_another_purpose_is_refused(client: openai.OpenAI) -> None:
    file = client.files.create(file=("pictures.zip", pictures()), purpose="vision")
    with pytest.raises(openai.BadRequestError, match="upload it with 'fine-tune'"):
        client.fine_tuning.jobs.create(model="nano", training_file=file.id)
    with pytest.raises(openai.NotFoundError, match="Could not find fine tune"):
        client.fine_tuning.jobs.retrieve("ftjob_none")


def test_events_as_they_happen(client: openai.OpenAI, server: ServerProcess) -> None:
    job = created(client)
    path = f"{server.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    with httpx2.stream("GET", path, timeout=WAIT_S, trust_env=False) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert set(lines) == {"event: fine_tuning.job.event"}
    assert len(lines) == len(messages(client, job.id))


def test_a_fine_tuned_model_and_its_checkpoints_make_pictures(client: openai.OpenAI) -> None:
    job = ended(client, created(client).id)
    assert job.fine_tuned_model is not None
    bare = job.fine_tuned_model.rsplit(":", 1)[1]
    asked = {"prompt": "a fox on a mint background", "size": "64x64", "extra_body": {"seed": 3}}
    usual = client.images.generate(model="nano", **asked).data
    for model in (job.fine_tuned_model, bare, f"{job.fine_tuned_model}:ckpt-step-2"):
        made = client.images.generate(model=model, **asked)
        assert made.data is not None
        assert usual is not None
        assert made.data[0].b64_json != usual[0].b64_json, model
    named = client.images.generate(
        model="nano",
        prompt=asked["prompt"],
        size="64x64",
        extra_body={"seed": 3, "adapters": [{"name": bare, "scale": 0}]},
    )
    assert named.data is not None
    with pytest.raises(openai.BadRequestError, match="there is no adapter 'none'") as refused:
        client.images.generate(model="nano", prompt="a fox", extra_body={"adapters": [{"name": "none"}]})
    assert refused.value.param == "adapters.0.name"
    assert client.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model=job.fine_tuned_model, **asked)


def test_a_server_that_is_killed_goes_on_with_the_run(client: openai.OpenAI, server: ServerProcess) -> None:
    job, later = created(client, steps=30), created(client, steps=2)
    until(client, job.id, has_stepped(client, job.id))
    server.kill()
    pid = starts(server, job.id)[-1]
    deadline = time.monotonic() + WAIT_S
    while is_alive(pid):  # it ends by itself, since the server has
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.start(STANDING_IN)
    server.wait_until_ready()
    assert [ended(client, each.id).status for each in (job, later)] == ["succeeded"] * 2
    steps = [int(each.split("/")[0][5:]) for each in messages(client, job.id) if "training loss" in each]
    assert steps == list(range(1, 31))
    assert len(starts(server, job.id)) == 2


def test_a_server_that_stops_leaves_the_run_for_its_next_start(client: openai.OpenAI, server: ServerProcess) -> None:
    job = created(client, steps=30)
    until(client, job.id, has_stepped(client, job.id))
    server.process.send_signal(signal.SIGTERM)
    server.wait_until_gone()
    assert not is_alive(starts(server, job.id)[-1])
    server.start(STANDING_IN)
    server.wait_until_ready()
    assert ended(client, job.id).status == "succeeded"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_real_trainer_makes_a_model_that_makes_pictures(tmp_path: Path) -> None:
    """Forty steps, paused on the way: enough to see that all of it fits together, and too few to learn much."""
    with server_process(tmp_path, OMP_NUM_THREADS="1") as real:
        client = openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0)
        seldom = {"progress_every": 1, "checkpoint_every": 20, "validate_every": 40, "preview_every": 40}
        small = {"batch_size": 1, "prior_pictures": 0, "sweep": False}
        job = created(client, steps=40, recipe={**seldom, **small}, seed=1, suffix="fox")
        until(client, job.id, has_stepped(client, job.id), LONG_S)
        client.fine_tuning.jobs.pause(job.id)
        until(client, job.id, lambda _: any("job paused" in each for each in messages(client, job.id)), LONG_S)
        client.fine_tuning.jobs.resume(job.id)
        done = until(client, job.id, lambda job: job.status in ENDED, LONG_S)
        assert done.status == "succeeded", messages(client, job.id)
        assert done.fine_tuned_model is not None
        assert done.trained_tokens == 40 * (64 + 28)  # of each step's one sample: the picture's and the text's
        asked = {"prompt": "a fox on a mint background", "size": "64x64", "extra_body": {"seed": 3}}
        tuned = client.images.generate(model=done.fine_tuned_model, **asked).data
        usual = client.images.generate(model="nano", **asked).data
        assert tuned is not None
        assert usual is not None
        assert tuned[0].b64_json != usual[0].b64_json
        assert client.fine_tuning.jobs.checkpoints.list(job.id).data
