"""What the routes work with: made once when the server starts, closed when it stops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request

from kleinbild.gateway.webhooks import RETRY_SECONDS

if TYPE_CHECKING:
    from kleinbild.gateway.api.media import Media
    from kleinbild.gateway.events import EventHub
    from kleinbild.gateway.flow.admit import Admission
    from kleinbild.gateway.flow.authenticate import Authenticator
    from kleinbild.gateway.pulse import Pulse
    from kleinbild.gateway.secrets import Secrets
    from kleinbild.gateway.settings import Settings
    from kleinbild.providers.base import Provider
    from kleinbild.safety.fetch import Fetcher
    from kleinbild.storage.blobs import Blobs
    from kleinbild.storage.database import Database


@dataclass(slots=True, eq=False)
class Services:
    """`running` are the tasks that make pictures, by job. `draining`: no new work, what is under way may end; when the
    server is `stopping`, what has not ended by then is left for the next start.

    `outbox` holds the ids of deliveries that are to be sent; the tasks in `delivering` send them, or wait to try again
    as `retry_seconds` say.
    """

    settings: Settings
    database: Database
    blobs: Blobs
    secrets: Secrets
    media: Media
    authenticator: Authenticator
    hub: EventHub
    admission: Admission
    provider: Provider
    fetcher: Fetcher
    pulse: Pulse
    retry_seconds: tuple[float, ...] = RETRY_SECONDS
    running: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    outbox: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    delivering: set[asyncio.Task[Any]] = field(default_factory=set)
    draining: bool = False
    stopping: bool = False


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
