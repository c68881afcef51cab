"""What docs/server.md and the README show of the server, done against one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.server import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
ADDRESS = re.compile(r"(http://)?(127\.0\.0\.1|localhost):8190")


def blocks(language: str, url: str, page: str = PAGE) -> list[str]:
    return [ADDRESS.sub(url, block) for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def test_python(server: Server) -> None:
    readme = [block for block in blocks("python", server.url, README) if "openai" in block]
    assert len(readme) == 1
    program = "\n".join([*readme, *blocks("python", server.url)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("iVBORw0K ")


def test_a_job_by_curl(server: Server) -> None:
    (block,) = [block for block in blocks("sh", server.url) if "curl" in block]
    create, follow = block.replace("\\\n", " ").strip().splitlines()
    created = subprocess.run(
        ["sh", "-c", f"{create} -s"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    (job_id,) = set(re.findall(r'"id": ?"(job_\w+)"', created))
    followed = follow.replace("job_…", job_id)
    events = subprocess.run(
        ["sh", "-c", f"{followed} -s"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    names = re.findall(r"^event: (\S+)$", events, re.MULTILINE)
    assert (names[0], names[-1]) == ("job.queued", "job.completed")
    assert "job.step" in names
