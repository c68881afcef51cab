"""One attempt: a call at a place, as a task of its own, from the money set aside for it to the one state in which it ends.

An attempt outlives the job that wanted it: who goes away does not stop a bill. What is under way when the process dies is
in the ledger, with its handle if the service gave one, and is followed from there (`Attempts.follow`).
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from PIL import Image
from pydantic import TypeAdapter

from kleinbild.core.deployments import Deployment
from kleinbild.core.errors import CancelledError, KleinbildError, OutputError
from kleinbild.core.formats import MEDIA_TYPES, PictureFormat
from kleinbild.core.jobs import ImageWork, MadePicture
from kleinbild.core.money import ZERO
from kleinbild.core.prices import BilledTokens, Measure, UnknownPriceError
from kleinbild.core.sizes import Size
from kleinbild.core.tokens import NO_TOKENS, Tokens
from kleinbild.gateway.flow.circuits import Permit
from kleinbild.providers.base import Inputs, Step, Waiting
from kleinbild.providers.hosted import Accepted, Answer, Call, Handle, Hosted, ProviderError
from kleinbild.safety.pictures import size_of
from kleinbild.storage.attempts import Attempt, Entry
from kleinbild.storage.ledger import Ledger

if TYPE_CHECKING:
    from kleinbild.gateway.fleet import Fleet
    from kleinbild.storage.blobs import Blobs

MAGIC: Mapping[PictureFormat, bytes] = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}
Final = Literal["done", "failed_unbilled", "failed_billed"]
LATER_SECONDS = 3600.0  # for which what nobody could wait for any longer is still followed, for the ledger's sake
_PICTURES = TypeAdapter(tuple[MadePicture, ...])
Booked = TypeVar("Booked")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt came out for those who waited: with pictures, with an error, or, `pending`, not at all yet: it may
    still be made and charged. `error` is a ProviderError, or a `core.errors` of the request, which no other place mends.
    `booked` is done once the ledger has it, which may be with the job's own end; None if it has it already."""

    pictures: tuple[MadePicture, ...] = ()
    error: KleinbildError | None = None
    pending: bool = False
    cost: Decimal = ZERO
    timings: Mapping[str, float] = field(default_factory=dict)
    tokens: Tokens = NO_TOKENS
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    booked: asyncio.Future[Any] | None = None


@dataclass(slots=True, eq=False)
class Running:
    """An attempt under way. `wanted`: somebody waits for its pictures. `sent`: the place may know of it."""

    attempt: Attempt
    deployment: Deployment
    place: Hosted
    call: Call
    measure: Measure
    task: asyncio.Task[Ended] | None = None
    handle: Handle | None = None
    reported: Decimal | None = None
    permit: Permit | None = None
    wanted: bool = True
    sent: bool = False

    def waiting(self) -> asyncio.Task[Ended]:
        """To wait for, with `asyncio.wait` or shielded: it is not to be cancelled with who waits."""
        assert self.task is not None
        return self.task


class Attempts:
    """All of this process. `kept_seconds` is how long pictures stay in the blob store."""

    def __init__(self, ledger: Ledger, blobs: Blobs, fleet: Fleet, kept_until: Callable[[], float]) -> None:
        self._ledger, self._blobs, self._fleet, self._kept_until = ledger, blobs, fleet, kept_until
        self._running: dict[str, Running] = {}
        self._booking: set[asyncio.Task[Any]] = set()
        self._leaving = False

    def begin(self, running: Running) -> Running:
        """Asks the place. The money is set aside already."""
        return self._start(running, self._ask(running))

    async def take_up(self, entry: Entry, work: ImageWork, inputs: Inputs) -> Running | None:
        """Goes on with what another process began, by its handle. None if there is nothing to wait for: made on this
        machine, it is gone, and nobody charges for it; without a handle, nobody knows."""
        attempt = entry.attempt
        if (running := self._running.get(attempt.id)) is not None:
            return running
        deployment = self._fleet.deployments.get(attempt.deployment)
        if attempt.kind == "local":
            await self._ledger.settle(attempt.id, "failed_unbilled", ZERO, detail="the engine or the server ended")
            return None
        if entry.handle is None or deployment is None or deployment.provider != attempt.provider:
            if entry.state != "unknown":
                await self._ledger.unknown(attempt.id, "the server ended before the service had answered")
            return None
        call = Call(attempt.id, attempt.provider_model, work, inputs, attempt.first, attempt.count, LATER_SECONDS)
        measure = Measure(attempt.count, attempt.megapixels, steps=work.steps, quality=work.quality)
        running = Running(attempt, deployment, self._fleet.place(deployment), call, measure, sent=True)
        running.handle, running.reported = entry.handle, entry.reported
        return self._start(running, self._followed(running))

    def abandon(self, running: Running) -> None:
        """Nobody waits for it any more. What can be ended is; the rest goes on, for its bill."""
        if self._leaving:
            return
        running.wanted = False
        assert running.task is not None
        if running.task.done():
            return
        if running.deployment.on_machine:
            running.task.cancel()
            if not running.sent:  # its task may never have had a turn
                self._also(self._never_sent(running))
        elif running.handle is not None:
            self._also(self._call_off(running))

    async def recover(self, attempt_ids: Iterable[str], work_of: Callable[[str], Awaitable[ImageWork | None]]) -> None:
        """What another process left: follows what belongs to jobs that will not ask for it themselves. `work_of` gives a
        job's work, None of one that will."""
        for attempt_id in attempt_ids:
            try:
                entry = await self._ledger.find(attempt_id)
                work = await work_of(entry.attempt.job_id) if entry else None
                if entry and work and not entry.has_ended:
                    await self.take_up(entry, work, Inputs())
            except Exception:
                log.exception("the attempt %s could not be taken up", attempt_id)

    async def take_up_rest(self, job_id: str) -> None:
        """Of a job that has ended: what another process began, and its chain did not take up. Killed after the pictures and
        before the job's end, a server does the end alone once more."""
        nothing = ImageWork("image.generate", "", "", seed=0)
        for entry in await self._ledger.of_job(job_id):
            if not entry.has_ended and entry.attempt.id not in self._running:
                await self.take_up(entry, nothing, Inputs())

    async def give_up_unknown(self, before: float, now: float) -> None:
        """Books what has been unknown since before that time as charged: nobody will tell otherwise any more, and a ceiling
        must hold. What nobody follows, for whatever reason, becomes unknown."""
        for entry in await self._ledger.unsettled():
            attempt = entry.attempt
            if attempt.id in self._running or attempt.created_at > now - LATER_SECONDS:
                continue
            if entry.state != "unknown":
                await self._ledger.unknown(attempt.id, "nobody follows it any more")
            elif attempt.created_at < before:
                cost = next(each for each in (entry.reported, attempt.quoted, attempt.reserved) if each is not None)
                await self._ledger.settle(
                    attempt.id, "failed_billed", cost, detail="never found out; booked as charged"
                )

    def leave(self) -> None:
        """From now on nothing is called off: the server stops, and its next start goes on with what is under way."""
        self._leaving = True

    async def close(self) -> None:
        """What still runs is left to the next process: the ledger has it. What has come in is kept and booked."""
        running = list(self._running.values())
        tasks = [*_beside, *(each.task for each in running if each.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in running:
            if not each.sent:
                await self._never_sent(each)
        await asyncio.gather(*self._booking, return_exceptions=True)
        await self._ledger.drain()

    def _start(self, running: Running, work: Coroutine[Any, Any, Ended]) -> Running:
        self._running[running.attempt.id] = running
        running.task = asyncio.create_task(work)
        running.task.add_done_callback(lambda _: self._running.pop(running.attempt.id, None))
        running.task.add_done_callback(_note_bug)
        return running

    def _also(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        _beside.add(task)
        task.add_done_callback(_beside.discard)
        task.add_done_callback(_note_bug)

    async def _ask(self, running: Running) -> Ended:
        call, fleet = running.call, self._fleet
        queued = fleet.clock()
        try:
            async with fleet.slot(running.deployment, call.count, call.seconds):
                if not running.wanted:
                    return await self._never_sent(running)
                running.sent, began = True, fleet.clock()
                call = replace(call, seconds=max(1.0, call.seconds - (began - queued)))
                try:
                    started = await running.place.start(call, _watcher(call))
                except ProviderError as error:
                    return await self._booked(self._failed(running, error, began))
                except KleinbildError as error:  # of the request itself
                    self._give_back(running)
                    await self._booked(self._end(running, "failed_unbilled", detail=error.message))
                    return Ended(error=error)
                if isinstance(started, Accepted):
                    return await self._accepted(running, started, call, began)
                return await self._booked(self._done(running, started, began))
        except ProviderError as error:  # there was no slot in time
            return await self._booked(self._failed(running, error, None))
        except asyncio.CancelledError:
            self._give_back(running)
            if running.deployment.on_machine and not running.wanted:
                await self._booked(self._end(running, "failed_unbilled", detail="nobody waited for it any more"))
            raise
        except Exception as error:  # noqa: BLE001 - told by `_lost`
            return await self._lost(running, error)

    async def _accepted(self, running: Running, started: Accepted, call: Call, began: float) -> Ended:
        running.handle, running.reported = started.handle, started.charged
        await self._booked(
            self._ledger.accepted(
                running.attempt.id, started.handle, reported=started.charged, request_id=started.request_id
            )
        )
        if not running.wanted:
            self._also(self._call_off(running))
        passed = self._fleet.clock() - began
        expected = call.expected and call.expected.after(passed)
        call = replace(call, seconds=max(1.0, call.seconds - passed), expected=expected)
        try:
            answer = await running.place.collect(started.handle, call, _watcher(call))
        except ProviderError as error:
            return await self._booked(self._failed(running, error, began))
        return await self._booked(self._done(running, answer, began))

    async def _followed(self, running: Running) -> Ended:
        """What nobody may wait for any more, to its end or for an hour: then nobody knows."""
        assert running.handle is not None
        call = replace(running.call, seconds=LATER_SECONDS, listener=None)
        try:
            answer = await running.place.collect(running.handle, call, _watcher(call))
        except ProviderError as error:
            if error.acceptance == "accepted" and error.cause in ("timeout", "connection"):
                await self._booked(self._ledger.unknown(running.attempt.id, error.detail or error.message))
                return Ended(error=error, pending=True)
            return await self._booked(self._failed(running, error, None))
        except Exception as error:  # noqa: BLE001 - told by `_lost`
            return await self._lost(running, error)
        return await self._booked(self._done(running, answer, None))

    async def _booked(self, work: Coroutine[Any, Any, Booked]) -> Booked:
        """Runs to its end although who waits is cancelled: what came from a service is kept, and its cost."""
        task = asyncio.create_task(work)
        self._booking.add(task)
        task.add_done_callback(self._booking.discard)
        return await asyncio.shield(task)

    async def _never_sent(self, running: Running) -> Ended:
        self._give_back(running)
        await self._end(running, "failed_unbilled", detail="it was never sent")
        return Ended(error=CancelledError("nobody waited for it any more"))

    async def _lost(self, running: Running, error: Exception) -> Ended:
        """Something of ours failed, not the service: what became of the work is not known."""
        log.error("the attempt %s went wrong here", running.attempt.id, exc_info=error)
        self._give_back(running)
        try:
            await self._ledger.unknown(running.attempt.id, f"went wrong here: {type(error).__name__}")
        except Exception:
            log.exception("the attempt %s stays as it is until the next sweep", running.attempt.id)
        told = ProviderError("something went wrong here", cause="failed", acceptance="unknown", billed=None)
        return Ended(error=told, pending=True)

    def _give_back(self, running: Running) -> None:
        self._fleet.released(running.permit)
        running.permit = None

    async def _done(self, running: Running, answer: Answer, began: float | None) -> Ended:
        """Keeps the pictures before the money is booked: whoever finds it booked finds them, too."""
        cost, reported = _cost(running, answer)
        seconds = None if began is None else self._fleet.clock() - began
        if seconds is not None:
            self._fleet.succeeded(running.deployment, running.measure, running.permit, seconds)
            running.permit = None
        try:
            pictures = await self._keep(running, answer)
        except Exception as error:
            log.exception("the pictures of the attempt %s could not be kept", running.attempt.id)
            await self._end(
                running, "failed_billed", cost, reported=reported, answer=answer, detail=f"not kept: {error}"[:200]
            )
            return Ended(error=OutputError("the picture was made and could not be kept", "look at the log"), cost=cost)
        booked = self._ending(
            running,
            "done",
            cost,
            reported=reported,
            answer=answer,
            seconds=seconds,
            pictures=pictures,
            alone=not running.wanted,
        )
        booked.add_done_callback(_note_bug)
        tokens = sum((each.tokens for each in answer.pictures), NO_TOKENS)
        if tokens == NO_TOKENS and answer.tokens is not None:
            tokens = _tokens(answer.tokens)
        return Ended(
            pictures,
            cost=cost,
            timings=_timings(answer, seconds),
            tokens=tokens,
            fingerprint=answer.pictures[0].fingerprint,
            notes=answer.notes,
            booked=booked,
        )

    async def _failed(self, running: Running, error: ProviderError, began: float | None) -> Ended:
        attempt_id, told = running.attempt.id, error.detail or error.message
        if began is None:
            self._give_back(running)
        else:
            seconds = self._fleet.clock() - began
            self._fleet.failed(running.deployment, running.measure, running.permit, error, seconds)
            running.permit = None
        if error.acceptance == "unknown":
            await self._ledger.unknown(attempt_id, told)
            return Ended(error=error, pending=True)
        if error.acceptance == "accepted" and error.handle is not None and running.handle is None:
            running.handle, running.reported = error.handle, error.charged
            await self._ledger.accepted(attempt_id, error.handle, reported=error.charged, request_id=error.request_id)
        if error.acceptance == "accepted" and running.handle is not None and error.cause in ("timeout", "connection"):
            return await self._too_slow(running, error)
        if error.acceptance == "accepted" and error.billed is None:  # it has ended; what it costs is not known
            await self._ledger.unknown(attempt_id, told)
            return Ended(error=error)
        billed = error.acceptance == "accepted" and error.billed is True
        known = (error.charged, running.reported, _quote(running))
        cost = next(each for each in known if each is not None) if billed else ZERO
        await self._end(
            running, "failed_billed" if billed else "failed_unbilled", cost, reported=error.charged, error=error
        )
        return Ended(error=error, cost=cost)

    async def _too_slow(self, running: Running, error: ProviderError) -> Ended:
        """Accepted, and not there in time: cancelled, if the service can do that, or followed without anybody waiting."""
        if await self._cancelled(running):
            await self._end(running, "failed_unbilled", error=error)
            return Ended(error=error)
        self._also(self._followed(running))
        return Ended(error=error, pending=True)

    async def _call_off(self, running: Running) -> None:
        if await self._cancelled(running):
            await self._end(running, "failed_unbilled", detail="nobody waited for it any more")
            assert running.task is not None
            running.task.cancel()

    async def _cancelled(self, running: Running) -> bool:
        assert running.handle is not None
        if not running.deployment.can.cancel:
            return False
        try:
            return await running.place.cancel(running.handle) == "cancelled"
        except ProviderError:
            return False

    async def _end(
        self,
        running: Running,
        state: Final,
        cost: Decimal = ZERO,
        *,
        reported: Decimal | None = None,
        answer: Answer | None = None,
        error: ProviderError | None = None,
        detail: str = "",
    ) -> None:
        ending = self._ending(running, state, cost, reported=reported, answer=answer, error=error, detail=detail)
        await asyncio.shield(ending)

    def _ending(
        self,
        running: Running,
        state: Final,
        cost: Decimal,
        *,
        reported: Decimal | None = None,
        answer: Answer | None = None,
        error: ProviderError | None = None,
        seconds: float | None = None,
        pictures: tuple[MadePicture, ...] = (),
        detail: str = "",
        alone: bool = True,
    ) -> asyncio.Future[Any]:
        source = answer or error
        return self._ledger.settling(
            running.attempt.id,
            state,
            cost,
            reported=reported,
            request_id=source.request_id if source else None,
            seconds=seconds,
            detail=detail or (error.detail or error.message if error else ""),
            result={"pictures": _PICTURES.dump_python(pictures, mode="json")} if pictures else None,
            alone=alone,
        )

    async def _keep(self, running: Running, answer: Answer) -> tuple[MadePicture, ...]:
        work, call = running.call.work, running.call
        kept = []
        for index, each in enumerate(answer.pictures):
            file, size = await _as_asked(each.file, work.output_format, work.compression)
            sha256 = await self._blobs.put(file, MEDIA_TYPES[work.output_format], self._kept_until())
            seed = each.seed if each.seed is not None else work.seed + call.first + index
            kept.append(MadePicture(sha256, seed, size, len(file), each.revised_prompt))
        return tuple(kept)


_beside: set[asyncio.Task[Any]] = set()  # the event loop itself does not hold on to its tasks


def pictures_of(result: Mapping[str, Any] | None) -> tuple[MadePicture, ...]:
    """Those that the ledger keeps of an attempt that is done."""
    return _PICTURES.validate_python(result["pictures"]) if result else ()


def _cost(running: Running, answer: Answer) -> tuple[Decimal, Decimal | None]:
    """What it cost, and what the service said that it does, which is believed."""
    reported = answer.charged if answer.charged is not None else running.reported
    if reported is not None:
        return reported, reported
    measure = replace(running.measure, tokens=answer.tokens) if answer.tokens else running.measure
    try:
        return running.deployment.price.of(measure), None
    except UnknownPriceError:
        return _quote(running), None


def _quote(running: Running) -> Decimal:
    quoted = running.attempt.quoted
    return running.attempt.reserved if quoted is None else quoted


def _timings(answer: Answer, seconds: float | None) -> Mapping[str, float]:
    own: dict[str, float] = {}
    for each in answer.pictures:
        for stage, spent in each.timings.items():
            own[stage] = own.get(stage, 0.0) + spent
    return own or ({} if seconds is None else {"service": seconds})


def _tokens(billed: BilledTokens) -> Tokens:
    return Tokens(billed.input_text, billed.input_image, billed.output_image)


def _watcher(call: Call) -> Any:
    def watch(position: int | None, preview: bytes | None) -> None:
        if call.listener is None:
            return
        if position is not None:
            call.listener(Waiting(position))
        if preview is not None:
            call.listener(Step(call.first, 0, 0, preview))

    return watch


async def _as_asked(file: bytes, wanted: PictureFormat, compression: int) -> tuple[bytes, Size]:
    """In the format that was asked for. Only headers are read of what has it already."""
    if file.startswith(MAGIC[wanted]):
        return file, size_of(file)
    return await asyncio.to_thread(_converted, file, wanted, compression)


def _converted(file: bytes, wanted: PictureFormat, compression: int) -> tuple[bytes, Size]:
    out = io.BytesIO()
    with Image.open(io.BytesIO(file)) as image:
        flat = image.convert("RGB") if wanted == "jpeg" or image.mode not in ("RGB", "RGBA", "L", "LA") else image
        quality = {} if wanted == "png" else {"quality": max(1, compression)}
        flat.save(out, wanted.upper(), **quality)
        return out.getvalue(), Size(image.width, image.height)


def _note_bug(task: asyncio.Future[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("an attempt failed by a bug; its money stays set aside", exc_info=error)
