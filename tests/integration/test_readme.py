"""What the README says, done: its commands in order in an empty folder, its Python, its links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.command import environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# What other tests do, or needs what is not here.
ELSEWHERE = ("make", "pip", "kleinbild serve", "kleinbild pull", "kleinbild models check FILE", "kleinbild doctor")
# Takes minutes: test_command.py of the trainer has a small one, benchmarks/personalize.py whole ones.
TRAINED = ("kleinbild train", 'kleinbild "zorp shoes')


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith((*ELSEWHERE, *TRAINED)) and "klein-4b" not in line]


def test_commands_in_order(tmp_path: Path) -> None:
    assert len(commands()) > 7
    for line in commands():
        words = shlex.split(line.replace("DIR", "exported"))
        assert words[0] == "kleinbild"
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    again, foxes = (np.asarray(Image.open(tmp_path / name)) for name in ("again.png", "foxes.png"))
    assert np.array_equal(again, foxes)
    assert (tmp_path / "exported" / "model_index.json").exists()


def test_python(tmp_path: Path) -> None:
    program = "\n".join(block for block in blocks("python") if "openai" not in block)  # tests/conformance has a server
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"fox.png", "night.png"}
    assert done.stdout.startswith("2 change the background to the night sky ")
    assert done.stdout.count("bytes of PNG") == 3


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/nano.md",
        "docs/performance.md",
        "docs/server.md",
        "docs/gateway.md",
        "docs/bfl.md",
        "docs/client.md",
        "docs/training.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), target


def test_the_map_names_what_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    for path in re.findall(r"`((?:cli|engine|gateway|model|nano|safety|storage)/[\w/]+\.py)`", text):
        assert (ROOT / "src/kleinbild" / path).exists(), path
