"""The routes of keys, files and pictures as an application, over real storage and without an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
from fastapi import FastAPI

from kleinbild.gateway import errors
from kleinbild.gateway.api import admin, budgets, files, media, reconcile
from kleinbild.gateway.api.media import Media
from kleinbild.gateway.flow.authenticate import Authenticator
from kleinbild.gateway.secrets import Secrets
from kleinbild.gateway.settings import Settings
from kleinbild.storage import keys
from kleinbild.storage.blobs import Blobs, open_blobs
from kleinbild.storage.budgets import Budgets
from kleinbild.storage.database import Database
from kleinbild.storage.keys import Key, Rights
from kleinbild.storage.ledger import Ledger


@dataclass
class Server:
    app: FastAPI
    client: httpx2.AsyncClient
    database: Database
    blobs: Blobs
    media: Media
    secrets: Secrets
    authenticator: Authenticator

    async def key(self, role: str = "member", *, parent: Key | None = None, **rights: Any) -> tuple[Key, str]:
        given = Rights(rights.pop("project", "p"), role, **rights)  # type: ignore[arg-type]
        async with self.database.write() as connection:
            return await keys.create(
                connection,
                self.secrets.derive("api keys"),
                name=role,
                owner="o",
                rights=given,
                parent=parent.id if parent else None,
            )

    async def ask(self, method: str, path: str, key: str | None = None, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return await self.client.request(method, path, headers={**headers, **more.pop("headers", {})}, **more)


@asynccontextmanager
async def serving(database: Database, folder: Path, *, open_to_all: bool = False) -> AsyncIterator[Server]:
    secrets = Secrets(b"m" * 32)
    app = FastAPI()
    errors.install(app)
    for router in (admin.router, budgets.router, reconcile.router, files.router, media.router):
        app.include_router(router)
    blobs = open_blobs(database, folder / "blobs")
    signed = Media(secrets.derive("signed urls"), 60)
    authenticator = Authenticator(database, secrets.derive("api keys"), open_to_all=open_to_all)
    app.state.services = SimpleNamespace(
        settings=Settings(),
        database=database,
        blobs=blobs,
        media=signed,
        secrets=secrets,
        authenticator=authenticator,
        ledger=Ledger(database),
        budgets=Budgets(database),
    )
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield Server(app, client, database, blobs, signed, secrets, authenticator)
