"""Jobs that outlive the process: DBOS keeps, in a database of its own, which step of which job is done.

A job is a workflow of its id. Killed at any moment, the server starts again, and DBOS runs what had not ended from the
step that had not ended: pictures are made anew from the seed that was settled before, and a job ends once.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from kleinbild.gateway.flow import make as steps
from kleinbild.storage import jobs
from kleinbild.storage.database import read_url

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

VERSION = "1"  # of the workflow's steps: what another version left unfinished must fit
MAX_RECOVERIES = 10_000  # DBOS gives a workflow up after so many; the engine is another process and has its own limit
_services: list[Services] = []  # of this process: DBOS is one per process, and finds workflows by name


@DBOS.workflow(name="job", max_recovery_attempts=MAX_RECOVERIES)
async def _job(job_id: str) -> None:
    outcome = await DBOS.run_step_async({"name": "make"}, _make, job_id)
    await DBOS.run_step_async({"name": "finish"}, _finish, job_id, outcome)


async def _make(job_id: str) -> dict[str, Any]:
    return jobs.outcome_json(await steps.make(_services[-1], job_id))


async def _finish(job_id: str, outcome: dict[str, Any]) -> None:
    await steps.finish(_services[-1], job_id, jobs.outcome_of(outcome))


async def launch(services: Services, data: Path) -> None:
    """Starts DBOS in this process and event loop, and whatever an earlier process left unfinished."""
    _services.append(services)
    DBOS(config=_config(services, data))
    logging.getLogger("dbos").setLevel(logging.WARNING)
    DBOS.launch()
    async with services.database.read() as connection:
        unfinished = await jobs.unfinished(connection)
        for job_id in unfinished:
            job = await jobs.find(connection, job_id)
            assert job is not None
            services.admission.resume(job.caller, job_id, job.work.n)
    for job_id in unfinished:
        if await DBOS.get_workflow_status_async(job_id) is None:  # others it has started itself
            await start(job_id)


async def start(job_id: str) -> None:
    with SetWorkflowID(job_id):
        await DBOS.start_workflow_async(_job, job_id)


async def stop(services: Services) -> None:
    """What still runs is left as it is, and is made after the next start."""
    services.stopping = True
    for task in services.running.values():
        task.cancel()
    await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
    # DBOS had made its threads the loop's, and has ended them; what closes after it needs some.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    _services.clear()


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
        "log_level": "WARNING",
    }
