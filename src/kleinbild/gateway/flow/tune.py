"""Fine-tuning jobs on their way: the training file is looked at, then the trainer runs, and what it writes becomes events.

A job's row says how it stands, whoever changes it: a request that pauses or cancels it, or this server's worker, which
looks at the row once a second while it trains. A run's folder has its state, so that a server that starts again goes on
with it. The trainer ends with the server (`providers.training`): that costs the few seconds of starting it again, and in
return there is never a run that nobody sees to or that two see to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from kleinbild.core.errors import KleinbildError, ModelError, RequestError
from kleinbild.core.training import Checkpointed, Failed, Finished, Progressed, Started, TrainingEvent, Validated
from kleinbild.gateway.flow import adapt, notify
from kleinbild.gateway.flow.results import kept_results
from kleinbild.gateway.tunings import happening
from kleinbild.model.adapters import registry
from kleinbild.providers.training import Heard, Trainer, TrainerProcess, tail_of_log
from kleinbild.storage import files, servers, tunings
from kleinbild.storage.blobs import MissingBlobError
from kleinbild.storage.database import OUTAGE
from kleinbild.storage.tunings import Checkpoint, Happening, Result, Status, Tuning
from kleinbild.train import recipe as recipes
from kleinbild.train.defaults import resolve, trainee_of

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

LISTEN_SECONDS = 0.25
LOOK_SECONDS = 1.0
AGAIN_SECONDS = 5.0  # after something of ours failed
MAX_FRUITLESS = 3  # starts of a trainer that ends without a word
DATA, VALIDATION = "data.zip", "validation.zip"
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
log = logging.getLogger(__name__)


class Tunings:
    """The fine-tuning jobs that this server sees to: `run` for ever, `wake` when there may be something to do."""

    def __init__(self, services: Services, trainer: Trainer) -> None:
        self._services, self._trainer = services, trainer
        self._wake = asyncio.Event()
        self._under_way: set[str] = set()
        self._fruitless: dict[str, int] = {}

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled; then trainers keep their states and end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_ever(["validating_files"], self._validate))
            for _ in range(self._services.settings.fine_tuning.runs):
                group.create_task(self._for_ever(("running", "queued"), self._train))

    async def _for_ever(self, statuses: Collection[Status], see_to: Callable[[Tuning], Awaitable[None]]) -> None:
        while True:
            try:
                self._wake.clear()
                if (tuning := await self._next(statuses)) is None:
                    await self._woken()
                    continue
                self._under_way.add(tuning.id)
                try:
                    await see_to(tuning)
                finally:
                    self._under_way.discard(tuning.id)
            except OUTAGE:
                await asyncio.sleep(AGAIN_SECONDS)  # the database is not there; what waits is found when it is
            except Exception:
                log.exception("a fine-tuning job could not be seen to; trying again")
                await asyncio.sleep(AGAIN_SECONDS)

    async def _next(self, statuses: Collection[Status]) -> Tuning | None:
        async with self._services.database.read() as connection:
            found = await tunings.waiting(connection, self._services.server, statuses)
        return next((each for each in found if each.id not in self._under_way), None)

    async def _woken(self) -> None:
        """By this server; where there are several, another may have had the request."""
        alone = self._services.server == servers.ALONE
        with suppress(TimeoutError):
            async with asyncio.timeout(None if alone else LOOK_SECONDS):
                await self._wake.wait()

    async def _validate(self, tuning: Tuning) -> None:
        """Makes the run's folder: its data, and the recipe that it begins with."""
        folder, param = self._folder(tuning), "training_file"
        try:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            await self._fetch(tuning, tuning.wanted.training_file, folder / DATA)
            if tuning.wanted.validation_file is not None:
                param = "validation_file"
                await self._fetch(tuning, tuning.wanted.validation_file, folder / VALIDATION)
            param = "recipe"
            await asyncio.to_thread(write_recipe, folder, tuning)
        except (KleinbildError, OSError) as error:
            hint = getattr(error, "hint", "")
            told = f"{error.message}; {hint}" if isinstance(error, KleinbildError) and hint else str(error)
            code, param = (
                ("model_not_available", "model") if isinstance(error, ModelError) else (f"invalid_{param}", param)
            )
            await self._fail(tuning, {"code": code, "message": told, "param": param})
            return
        async with self._services.database.write() as connection:
            if await tunings.change(connection, tuning.id, ["validating_files"], "queued"):
                said = Happening("Files validated, moving job to queued state", time.time())
                await tunings.tell(connection, tuning.id, [said])
        self.wake()

    async def _fetch(self, tuning: Tuning, file_id: str, to: Path) -> None:
        """An uploaded file. Raises RequestError for what is gone, or of no use."""
        async with self._services.database.read() as connection:
            file = await files.find(connection, file_id, tuning.project, time.time())
        if file is None:
            raise RequestError(f"there is no file {file_id} any more", "upload it again")
        try:
            blob = await self._services.blobs.stream(file.sha256)
            with to.open("wb") as data:
                async for chunk in blob.chunks:
                    await asyncio.to_thread(data.write, chunk)
        except MissingBlobError as error:
            raise RequestError(f"there is no file {file_id} any more", "upload it again") from error
        limit = int(self._services.settings.fine_tuning.max_unpacked_mb * 1e6)
        await asyncio.to_thread(check_archive, to, limit)

    async def _train(self, tuning: Tuning) -> None:
        folder = self._folder(tuning)
        if not (folder / recipes.FILE).is_file():  # another server began it, or its folder was removed
            async with self._services.database.write() as connection:
                await tunings.change(connection, tuning.id, ("queued", "running"), "validating_files")
            self.wake()
            return
        heard = Heard(folder, tuning.heard_until)
        last = await self._take(tuning, heard)  # what was written after the server before had ended
        if not isinstance(last, Finished | Failed):
            process = await self._trainer.start(folder)
            try:
                last = await self._listen(tuning, heard, process) or last
            except BaseException:
                process.stop()
                await process.ended()
                with suppress(SQLAlchemyError):  # what could not be kept now is read again, and the server is to end
                    await self._take(tuning, heard)
                raise
        await self._conclude(tuning, last)

    async def _listen(self, tuning: Tuning, heard: Heard, process: TrainerProcess) -> TrainingEvent | None:
        """Until it has ended. The last thing it said."""
        last, looked = None, time.monotonic()
        while not await process.ended(LISTEN_SECONDS):
            last = await self._take(tuning, heard) or last
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                await self._look(tuning, process, has_begun=last is not None)
        return await self._take(tuning, heard) or last

    async def _look(self, tuning: Tuning, process: TrainerProcess, *, has_begun: bool) -> None:
        """Whether it is still wanted. One that was resumed before its trainer had been told to pause just goes on."""
        status = await self._status(tuning.id)
        if status not in ("queued", "running"):
            process.stop()
        elif status == "queued" and has_begun:
            async with self._services.database.write() as connection:
                await tunings.change(connection, tuning.id, ["queued"], "running")

    async def _take(self, tuning: Tuning, heard: Heard) -> TrainingEvent | None:
        """Keeps what the trainer has written since. The last of it. Whoever is cancelled meanwhile is so afterwards: a
        transaction that is cut short would lock the database for the next."""
        taking = asyncio.create_task(self._keep(tuning, heard))
        try:
            return await asyncio.shield(taking)
        finally:
            await asyncio.wait({taking})

    async def _keep(self, tuning: Tuning, heard: Heard) -> TrainingEvent | None:
        new = await asyncio.to_thread(lambda: list(heard.new()))
        if not new:
            return None
        async with self._services.database.write() as connection:
            await tunings.tell(connection, tuning.id, [happening(tuning, event, at) for event, at in new])
            for event, at in new:
                if isinstance(event, Started):
                    await tunings.change(connection, tuning.id, ["queued"], "running")
                    if event.step == 0:
                        await tunings.note(connection, tuning.id, started_at=at)
                elif isinstance(event, Progressed):
                    await tunings.note(connection, tuning.id, estimated_finish=at + event.seconds_left)
                elif isinstance(event, Checkpointed):
                    metrics = _metrics_at(event.step, [each for each, _ in new])
                    await tunings.add_checkpoint(connection, Checkpoint(tuning.id, event.step, event.path, metrics, at))
            await tunings.note(connection, tuning.id, heard_until=heard.until)
        if any(isinstance(event, Progressed | Checkpointed) for event, _ in new):
            self._fruitless.pop(tuning.id, None)
        return new[-1][0]

    async def _conclude(self, tuning: Tuning, last: TrainingEvent | None) -> None:
        if isinstance(last, Finished):
            await self._succeed(tuning, last)
        elif isinstance(last, Failed):
            said = f"{last.message}; {last.hint}" if last.hint else last.message
            await self._fail(tuning, {"code": last.kind, "message": said, "param": None})
        elif await self._status(tuning.id) in ("queued", "running"):  # it ended, and nobody had asked it to
            self._fruitless[tuning.id] = self._fruitless.get(tuning.id, 0) + 1
            if self._fruitless[tuning.id] >= MAX_FRUITLESS:
                log.error("the trainer of %s keeps ending: %s", tuning.id, tail_of_log(self._folder(tuning)))
                message = "the trainer's process ended again and again; the server's log says more"
                await self._fail(tuning, {"code": "worker_ended", "message": message, "param": None})

    async def _succeed(self, tuning: Tuning, finished: Finished) -> None:
        if await self._status(tuning.id) in tunings.FINAL:
            with suppress(ModelError):  # it was cancelled a moment ago
                await asyncio.to_thread(registry.remove, tuning.adapter)
            return
        kept = await kept_results(self._services, tuning, self._folder(tuning) / finished.path)
        tokens = finished.metrics.get("tokens")
        result = Result(None, None if tokens is None else int(tokens), tuple(file.id for file in kept))
        said = Happening("The job has successfully completed", time.time())
        for file in kept:
            async with self._services.database.write() as connection:
                await files.add(connection, file)
        await self._end(tuning, "succeeded", result, said)
        await asyncio.to_thread(self._tidy, tuning)

    async def _fail(self, tuning: Tuning, error: dict[str, str | None]) -> None:
        said = Happening(f"The job failed: {error['message']}", time.time(), "error")
        await self._end(tuning, "failed", Result(error), said)

    async def cancel(self, tuning: Tuning) -> Tuning | None:
        """None: it had ended before."""
        said = Happening("The job was cancelled", time.time())
        cancelled = await self._end(tuning, "cancelled", Result(), said)
        self.wake()
        return cancelled

    async def _end(self, tuning: Tuning, status: Status, result: Result, said: Happening) -> Tuning | None:
        now = time.time()
        async with self._services.database.write() as connection:
            ended = await tunings.change(
                connection, tuning.id, tunings.UNFINISHED, status, result=result, finished_at=now
            )
            if ended is None:
                return None
            await tunings.tell(connection, tuning.id, [said])
            deliveries = await notify.record_tuning(connection, ended, now, self._services.server)
        for delivery in deliveries:
            self._services.outbox.put_nowait(delivery.id)
        return ended

    async def _status(self, job_id: str) -> Status | None:
        async with self._services.database.read() as connection:
            found = await tunings.find(connection, job_id)
        return None if found is None else found.status

    def _folder(self, tuning: Tuning) -> Path:
        return adapt.run_folder(self._services.settings.data, tuning.id)

    def _tidy(self, tuning: Tuning) -> None:
        """Of a run that is done, its data and its state are of no use any more."""
        folder = self._folder(tuning)
        for name in (DATA, VALIDATION, "state.pt"):
            (folder / name).unlink(missing_ok=True)


def check_archive(path: Path, max_bytes: int) -> None:
    """Raises RequestError for what is no zip of pictures, or too large. The trainer looks at the pictures themselves."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise RequestError(f"the file is no zip: {error}", "pack pictures and their captions as a zip") from error
    num_bytes = sum(member.file_size for member in members)
    if num_bytes > max_bytes:
        raise RequestError(
            f"the file has {num_bytes / 1e6:.0f} MB unpacked, more than {max_bytes / 1e6:.0f}",
            "train on fewer or smaller pictures, or raise fine_tuning.max_unpacked_mb",
        )
    if not any(Path(member.filename).suffix.lower() in PICTURES for member in members):
        raise RequestError(
            f"there is no picture among the {len(members)} files in it",
            f"pack pictures ({', '.join(sorted(PICTURES))}), each with its caption in a .txt of its name",
        )


def write_recipe(folder: Path, tuning: Tuning) -> None:
    """What the trainer reads first. Raises ModelError where the model is not on this machine, RequestError for values that
    contradict each other."""
    wanted, chosen = tuning.wanted, tuning.wanted.hyperparameters
    ours = {"model": wanted.base, "data": str(folder / DATA), "name": tuning.adapter, "seed": wanted.seed}
    if wanted.validation_file is not None:
        ours["validation_data"] = str(folder / VALIDATION)
    values = {**wanted.recipe, **ours}
    if chosen.n_epochs != "auto":
        values = {key: value for key, value in values.items() if key not in ("steps", *_SIZING)} | {
            "epochs": float(chosen.n_epochs)
        }
    if chosen.batch_size != "auto":
        values["batch_size"] = chosen.batch_size
    usual = resolve({**values, "regularization_share": 0.0}, trainee_of(wanted.base), 1)
    if chosen.learning_rate_multiplier != "auto":
        values["learning_rate"] = usual.learning_rate * chosen.learning_rate_multiplier
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    (folder / recipes.FILE).write_text("\n".join(lines) + "\n", "utf-8")  # what JSON has of these is TOML, too


def remove_run(data: Path, job_id: str) -> None:
    shutil.rmtree(adapt.run_folder(data, job_id), ignore_errors=True)


_SIZING = ("samples_an_example", "min_samples", "max_samples")


def _metrics_at(step: int, events: Collection[TrainingEvent]) -> dict[str, float]:
    """OpenAI's names of what is known of the step."""
    found: dict[str, float] = {}
    for event in events:
        if isinstance(event, Progressed) and event.step <= step:
            found["train_loss"] = event.loss
        elif isinstance(event, Validated) and event.step <= step:
            found["full_valid_loss"] = event.loss
        elif isinstance(event, Checkpointed) and event.step == step and event.loss is not None:
            found.setdefault("full_valid_loss", event.loss)
    return found
