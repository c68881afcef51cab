"""The application: routes, errors and what every request passes through."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

import kleinbild
from kleinbild.gateway import errors
from kleinbild.gateway.api import (
    adapters,
    admin,
    bfl,
    budgets,
    files,
    fine_tuning,
    health,
    hooks,
    jobs,
    media,
    models,
    openai_images,
    providers,
    reconcile,
    routing,
    usage,
    webhooks,
)
from kleinbild.gateway.bodies import LimitBody
from kleinbild.gateway.described import ErrorObject, Problem
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings
from kleinbild.gateway.tracing import Tracing

ROUTERS = (
    openai_images.router,
    bfl.router,
    jobs.router,
    files.router,
    fine_tuning.router,
    adapters.router,
    models.router,
    routing.router,
    usage.router,
    budgets.router,
    webhooks.router,
    media.router,
    admin.router,
    reconcile.router,
    providers.router,
    hooks.router,
    health.router,
)


def create_app(settings: Settings) -> FastAPI:
    """The routes. Who runs it puts `gateway.services.Services` into `app.state.services` before the first request."""
    app = FastAPIOffline(title="Kleinbild", version=kleinbild.__version__, redoc_url=None, static_url="/docs/files")
    errors.install(app)

    def max_bytes() -> int:
        return int(_in_force(app, settings).limits.max_body_mb * 1e6)

    app.add_middleware(LimitBody, max_bytes=max_bytes, max_other_bytes=lambda: max_bytes() // 10)
    app.add_middleware(Tracing)
    for router in ROUTERS:
        app.include_router(router)
    _describe_errors(app)
    return app


def _in_force(app: FastAPI, settings: Settings) -> Settings:
    """The services' settings, which may change while they run; before there are any, those that were given."""
    services: Services | None = getattr(app.state, "services", None)
    return services.settings if services else settings


def _describe_errors(app: FastAPI) -> None:
    """Puts the error objects into the OpenAPI file, whose routes refer to them."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        described = make()
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        for model in (ErrorObject, Problem):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        _describe_keys(described)
        _summarise(described)
        return described

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _describe_keys(described: dict[str, Any]) -> None:
    """Which routes want a key, so that /docs asks for one. Signed URLs and health want none."""
    said = {"description": "a key of this server; none where it needs none"}
    described["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", **said},
        "x-key": {"type": "apiKey", "in": "header", "name": "x-key", **said},
    }
    for path, operations in described["paths"].items():
        if path.startswith("/v1/") and not path.startswith("/v1/media/"):
            for operation in operations.values():
                operation["security"] = [{"x-key": []} if "bfl" in operation["tags"] else {"key": []}]


def _summarise(described: dict[str, Any]) -> None:
    """Names each route by the first sentence of its docstring, not by the function's name."""
    for operations in described["paths"].values():
        for operation in operations.values():
            if sentence := operation.get("description", "").partition("\n\n")[0]:
                operation["summary"] = " ".join(sentence.split()).partition(". ")[0].rstrip(".")
