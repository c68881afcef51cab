"""What docs/server.md and the README show of the server, done against one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.server import Server
from tests.trainer import write_lora

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


def by_curl(server: Server, path: str) -> list[str]:
    """The commands of the block that asks `path`."""
    (block,) = [block for block in blocks("sh", server.url) if path in block]
    return block.replace("\\\n", " ").strip().splitlines()


def test_a_job_by_curl(server: Server) -> None:
    create, follow = by_curl(server, "/v1/jobs")
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


def test_a_fine_tuning_job_by_curl(server: Server, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "fuchur.zip", "w") as archive:
        archive.writestr("fuchur.png", b"a picture, for all that is looked at before training")

    def said(command: str) -> str:
        run = ["sh", "-c", f"{command} -s"]
        return subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout

    upload, create, follow = by_curl(server, "/v1/fine_tuning")
    (file_id,) = re.findall(r'"id": ?"(file_\w+)"', said(upload))
    created = said(create.replace("file_…", file_id))
    (job_id,) = re.findall(r'"id": ?"(ftjob_\w+)"', created)
    assert server.ask("POST", f"/v1/fine_tuning/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert "The job was cancelled" in said(follow.replace("ftjob_…", job_id))


def test_the_clients_page(server: Server, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "client.md").read_text("utf-8")
    with write_lora(tmp_path / "crayon.safetensors").open("rb") as file:
        given = server.ask("POST", "/v1/files", files={"file": file}, data={"purpose": "fine-tune"}).json()
    made = server.ask("POST", "/v1/adapters", json={"name": "crayon", "file": given["id"]})
    assert made.status_code < 300, made.text
    program = "\n".join(blocks("python", server.url, page))
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "KLEINBILD_BASE_URL": server.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        assert server.ask("DELETE", "/v1/adapters/crayon").status_code < 300
    assert done.returncode == 0, done.stderr
    assert done.stdout == "crayon\n"
    assert {"apple.png", "lemon.png"} <= {path.name for path in tmp_path.iterdir()}
