"""docs/server.md's table of settings is what the code knows. To write it anew: python -m tests.unit.gateway.test_docs"""

from __future__ import annotations

import re
from pathlib import Path

from kleinbild.gateway.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "server.md"
BETWEEN = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)


def table() -> str:
    lines = ["| setting | default | |", "|---|---|---|"]
    settings = Settings()
    for section in Settings.model_fields:
        values = getattr(settings, section)
        for name, field in type(values).model_fields.items():
            value = getattr(values, name)
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
            lines.append(f"| `{section}.{name}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_settings_is_the_codes() -> None:
    found = BETWEEN.search(PAGE.read_text("utf-8"))
    assert found is not None
    assert found.group() == table()


if __name__ == "__main__":
    PAGE.write_text(BETWEEN.sub(lambda _: table(), PAGE.read_text("utf-8")), "utf-8")
