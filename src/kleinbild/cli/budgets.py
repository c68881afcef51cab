"""`kleinbild budgets`: what may be spent, and what is left of it, by a running server's word."""

from __future__ import annotations

from kleinbild.cli import options
from kleinbild.cli.asked import ask
from kleinbild.cli.terminal import result_json, result_table, when
from kleinbild.client.calls import Call

COLUMNS = ("budget", "of", "which", "amount", "each", "spent", "reserved", "left", "anew")
MONEY = ("amount", "spent", "reserved", "left")


def budgets(server: options.RunningServer = None, as_json: options.Json = False) -> None:
    """List the budgets that concern your key, and what is left of them.

    In US dollars; for an admin, all there are. Asks a running server, with the key in KLEINBILD_API_KEY.
    """
    found = ask(server, Call("GET", "/v1/budgets")).json()["data"]
    if as_json:
        result_json(found)
        return
    rows = [
        (
            each["id"],
            each["scope"],
            each["subject"] or "-",
            each["amount"],
            each["window"] or "-",
            each["spent"],
            each["reserved"],
            each["remaining"],
            when(each["resets_at"]),
        )
        for each in found
    ]
    result_table(COLUMNS, rows, MONEY)
