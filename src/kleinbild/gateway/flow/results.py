"""What a fine-tuning job gives as files: its metrics by step, as OpenAI's, and the adapter itself."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kleinbild.core.ids import new_id
from kleinbild.storage import tunings
from kleinbild.storage.files import File
from kleinbild.storage.tunings import Happening, Tuning

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

PURPOSE = "fine-tune-results"
COLUMNS = ("step", "train_loss", "valid_loss", "learning_rate")
PAGE = 1000
DAY = 24 * 3600.0


async def kept_results(services: Services, tuning: Tuning, adapter: Path) -> list[File]:
    """The files, whose bytes are kept for a day: until their rows are."""
    now = time.time()
    table = metrics_csv(await _all_events(services, tuning.id)).encode()
    given: list[tuple[str, bytes | Path, int]] = [("step_metrics.csv", table, len(table))]
    if (num_bytes := await asyncio.to_thread(_size, adapter)) is not None:
        given.append((f"{tuning.adapter}.safetensors", adapter, num_bytes))
    found = []
    for name, data, num_bytes in given:
        sha256 = await services.blobs.put(data, "application/octet-stream", now + DAY)
        found.append(File(new_id("file"), tuning.project, name, PURPOSE, sha256, num_bytes, now))
    return found


def metrics_csv(events: list[Happening]) -> str:
    """A line for each step that something is known of."""
    steps: dict[int, dict[str, float]] = {}
    for event in events:
        if event.data is not None and "step" in event.data:
            known = {name: event.data[name] for name in COLUMNS if name in event.data}
            steps.setdefault(event.data["step"], {}).update(known)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(steps[step] for step in sorted(steps))
    return text.getvalue()


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


async def _all_events(services: Services, job_id: str) -> list[Happening]:
    found: list[Happening] = []
    async with services.database.read() as connection:
        while page := await tunings.events(connection, job_id, limit=PAGE, after=found[-1].number if found else 0):
            found += page
    return found
