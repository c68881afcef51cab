"""Jobs that outlive the process: DBOS keeps, in a database of its own, which step of which job is done.

A job is a workflow of its id. Killed at any moment, the server starts again, and DBOS runs what had not ended from the
step that had not ended: pictures are made anew from the seed that was settled before, and a job ends once. On PostgreSQL,
where other servers may go on with it (`takeover`), that is a new workflow of theirs.

So is each delivery of a job's end to a webhook, with its attempts and the times between them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbos import DBOS, DBOSConfig, SetWorkflowID, StepOptions

from kleinbild.gateway.flow import make as steps
from kleinbild.gateway.flow import notify
from kleinbild.storage import jobs, webhooks
from kleinbild.storage.database import read_url
from kleinbild.storage.servers import ALONE, Left

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

VERSION = "1"  # of the workflow's steps: what another version left unfinished must fit
MAX_RECOVERIES = 10_000  # DBOS gives a workflow up after so many; the engine is another process and has its own limit
FORGOTTEN_AT_ONCE = 500
_services: list[Services] = []  # of this process: DBOS is one per process, and finds workflows by name
_senders: list[asyncio.Task[None]] = []  # the one that empties the outbox, while the server runs
log = logging.getLogger(__name__)


@DBOS.workflow(name="job", max_recovery_attempts=MAX_RECOVERIES)
async def _job(job_id: str) -> None:
    outcome = await DBOS.run_step_async(_persistent("make"), _make, job_id)
    await DBOS.run_step_async(_persistent("finish"), _finish, job_id, outcome)


async def _make(job_id: str) -> dict[str, Any]:
    return jobs.outcome_json(await steps.make(_services[-1], job_id))


async def _finish(job_id: str, outcome: dict[str, Any]) -> None:
    services = _services[-1]
    await steps.finish(services, job_id, jobs.outcome_of(outcome))
    await services.attempts.take_up_rest(job_id)


@DBOS.workflow(name="delivery", max_recovery_attempts=MAX_RECOVERIES)
async def _deliver(delivery_id: str, made: int = 0, waited: float = 0.0) -> None:
    """After `made` attempts by earlier workflows, `waited` seconds after the last of them."""
    services, task = _services[-1], asyncio.current_task()
    assert task is not None
    services.delivering.add(task)
    try:
        for seconds in services.retry_seconds[made:]:
            await DBOS.sleep_async(max(0.0, notify.jittered(seconds) - waited))  # until the same moment after a restart
            waited = 0.0
            if await DBOS.run_step_async(_persistent("send"), _send, delivery_id):
                return
        await DBOS.run_step_async(_persistent("give_up"), _give_up, delivery_id)
    finally:
        services.delivering.discard(task)


async def _send(delivery_id: str) -> bool:
    return await notify.send(_services[-1], delivery_id)


async def _give_up(delivery_id: str) -> None:
    await notify.give_up(_services[-1], delivery_id)


def _persistent(name: str) -> StepOptions:
    """A step whose failures are the database's or the disk's, for a moment: all others are outcomes. A minute in all."""
    return {"name": name, "retries_allowed": True, "max_attempts": 6, "interval_seconds": 1.0, "backoff_rate": 2.0}


async def launch(services: Services, data: Path) -> None:
    """Starts DBOS in this process and event loop, with what it has not seen the end of."""
    _services.append(services)
    DBOS(config=_config(services, data))
    logging.getLogger("dbos").setLevel(logging.WARNING)
    DBOS.launch()
    _senders.append(asyncio.create_task(_empty_outbox(services)))


async def take_up(services: Services, left: Left) -> None:
    """Starts the jobs and deliveries that an earlier process, or another server, has left, unless DBOS has."""
    known = {workflow_id.partition(".")[0] for workflow_id in await _under_way(services.server)}
    for job_id in left.jobs:
        if job_id not in known:
            await start(job_id, again=True)
    for delivery_id in left.deliveries:
        if delivery_id not in known:
            await _start_delivery_again(services, delivery_id)


async def call_off(server: int) -> None:
    """Nothing more is done of the workflows of a server that has died: what they were of is taken up by new ones."""
    if workflows := await _under_way(server):
        await DBOS.cancel_workflows_async(workflows)


async def start(job_id: str, *, again: bool = False) -> None:
    """`again`: an earlier workflow of it may have ended without having ended the job, as with a disk that was full."""
    with SetWorkflowID(_another(job_id) if again else job_id):
        await DBOS.start_workflow_async(_job, job_id)


async def start_delivery(delivery_id: str) -> None:
    """One that is under way is not started again."""
    with SetWorkflowID(delivery_id):
        await DBOS.start_workflow_async(_deliver, delivery_id)


async def _start_delivery_again(services: Services, delivery_id: str) -> None:
    async with services.database.read() as connection:
        delivery = await webhooks.find_delivery(connection, delivery_id)
    if delivery is None:
        return  # its webhook was deleted a moment ago
    waited = 0.0 if delivery.attempted_at is None else time.time() - delivery.attempted_at
    with SetWorkflowID(_another(delivery_id)):
        await DBOS.start_workflow_async(_deliver, delivery_id, delivery.attempts, waited)


async def forget(before: float) -> None:
    """Removes what DBOS keeps of workflows that ended before that time."""
    until = datetime.fromtimestamp(before, UTC).isoformat()
    ended = ["SUCCESS", "ERROR", "CANCELLED"]
    while found := await DBOS.list_workflows_async(
        status=ended, completed_before=until, limit=FORGOTTEN_AT_ONCE, load_input=False, load_output=False
    ):
        await DBOS.delete_workflows_async([workflow.workflow_id for workflow in found])


def _another(name: str) -> str:
    """A workflow id that has not been used; `_under_way` knows whose it is."""
    return f"{name}.{secrets.token_hex(4)}"


async def stop(services: Services) -> None:
    """What still runs is left as it is, and is made or sent after the next start."""
    services.stopping = True
    services.attempts.leave()
    logging.getLogger("dbos").setLevel(logging.ERROR)  # it warns of every task that is cancelled
    for task in services.running.values():
        task.cancel()
    sending = [*_senders, *services.delivering, *services.direct]
    for task in sending:
        task.cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    _senders.clear()
    await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
    # DBOS had made its threads the loop's, and has ended them; what closes after it needs some.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    _services.clear()


async def _under_way(server: int) -> list[str]:
    """The ids of that server's workflows which have not ended."""
    found = await DBOS.list_workflows_async(
        status=["PENDING", "ENQUEUED"], executor_id=_executor(server), load_input=False, load_output=False
    )
    return [workflow.workflow_id for workflow in found]


def _executor(server: int) -> str:
    """DBOS goes on by itself, when it is launched, with what one of the same name began: on SQLite alone."""
    return "local" if server == ALONE else f"server {server}"


async def _empty_outbox(services: Services) -> None:
    """For ever. What is in the outbox when the server ends is found in the database after the next start."""
    while True:
        delivery_id = await services.outbox.get()
        try:
            await start_delivery(delivery_id)
        except Exception:
            log.exception("the delivery %s could not be started; it is after the next start", delivery_id)


def _config(services: Services, data: Path) -> DBOSConfig:
    """In PostgreSQL its tables are in a schema of their own, `dbos`; beside SQLite they are in a file of their own."""
    if services.settings.storage.database_url is not None:
        url = read_url(services.settings.storage.database_url).render_as_string(hide_password=False)
    else:
        path = data / "workflows.sqlite"
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: fewer syncs a step, readers never wait
        connection.close()
        url = f"sqlite:///{path}"
    return {
        "name": "kleinbild",
        "system_database_url": url,
        "dbos_system_schema": "dbos",
        "application_version": VERSION,
        "executor_id": _executor(services.server),
        "log_level": "WARNING",
    }
