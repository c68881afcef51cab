"""Our own OpenAPI file against the server: schemathesis asks every route for what the file allows and for what it does
not. No answer may be a server's error, and each must be as the file says."""

from __future__ import annotations

import json
from copy import deepcopy

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
)

from kleinbild.gateway.app import create_app
from kleinbild.gateway.settings import Settings
from tests.server import Server

NUM_EXAMPLES = 4  # of a route, beside those that cover its schema's limits


described = create_app(Settings()).openapi()
# A copy, since it is changed by who reads it. /v1/events never ends: it tells what happens.
schema = schemathesis.openapi.from_dict(deepcopy(described)).exclude(path="/v1/events")


def test_this_is_the_file_that_is_served(server: Server) -> None:
    assert server.ask("GET", "/openapi.json").json() == json.loads(json.dumps(described))


@schema.parametrize()
@settings(max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_route(case: schemathesis.Case, keyed_server: Server) -> None:
    """Asked by an admin: a server without keys would be closed by the first that a request makes."""
    _make_small(case.body)
    # That a valid request is granted cannot be told from the file: nano knows only so many words, a file must be a
    # picture, a URL must lead somewhere.
    excluded = [positive_data_acceptance]
    if case.path == "/v1/moderations":
        excluded.append(not_a_server_error)  # an honest 501
    if "bfl" in case.operation.tags:
        excluded += [missing_required_header, ignored_auth]  # 403 where others say 401
        excluded.append(negative_data_rejection)  # a key may come in either header; an id that is none is a 200, too
    case.call_and_validate(
        base_url=keyed_server.url, headers=keyed_server.headers, excluded_checks=excluded, timeout=60
    )


def _make_small(body: object) -> None:
    """Ten pictures of 200 steps are allowed, and take minutes. A wrong value stays as it is."""
    fields = body.get("input", body) if isinstance(body, dict) else None
    if isinstance(fields, dict):
        for name, most in (("n", 10), ("steps", 200)):
            if isinstance(fields.get(name), int) and 1 <= fields[name] <= most:
                fields[name] = 1
