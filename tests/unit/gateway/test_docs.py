"""docs/server.md's table of settings is what the code knows. To write it anew: python -m tests.unit.gateway.test_docs"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kleinbild.gateway.configured import ARRAYS, Section
from kleinbild.gateway.mistakes import model_in
from kleinbild.gateway.settings import SECTIONS, Settings

PAGE = Path(__file__).parents[3] / "docs" / "server.md"
BETWEEN = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)


def table() -> str:
    lines = ["| setting | default | |", "|---|---|---|"]
    settings = Settings()
    for section in SECTIONS:
        values = getattr(settings, section)
        for name, field in type(values).model_fields.items():
            lines.append(f"| `{section}.{name}` | {shown(getattr(values, name))} | {field.description} |")
    return "\n".join(lines) + "\n\n" + lists()


def lists() -> str:
    """The arrays of tables; a table within an entry has its own line for each of its names."""
    lines = ["| in the file alone | default | |", "|---|---|---|"]
    for array, model in ARRAYS.items():
        lines += of_entry(f"[[{array}]] ", model)
    return "\n".join(lines) + "\n"


def of_entry(prefix: str, model: type[Section]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        default = "*required*" if field.is_required() else shown(field.default)
        inner = model_in(field.annotation)
        yield f"| `{prefix}{name}` | {'' if inner and not field.is_required() else default} | {field.description} |"
        if inner:
            yield from of_entry(f"{prefix}{name}.", inner)


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None or value == {} else str(value)


def test_the_table_of_settings_is_the_codes() -> None:
    found = BETWEEN.search(PAGE.read_text("utf-8"))
    assert found is not None
    assert found.group() == table()


if __name__ == "__main__":
    PAGE.write_text(BETWEEN.sub(lambda _: table(), PAGE.read_text("utf-8")), "utf-8")
