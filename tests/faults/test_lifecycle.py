"""The server's life: it says where it is, reads its settings again, and ends without losing what is under way."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from tests.server import START_S, log_of, ready, serving, start

PROMPT = "a fox on a mint background"


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kleinbild", *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "KLEINBILD_HOME": str(cwd)},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def until(true, seconds: float = START_S) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_it_says_where_it_is_while_it_is_there(tmp_path: Path) -> None:
    announced = tmp_path / "server" / "server.json"
    with serving(tmp_path) as server:
        assert json.loads(announced.read_text())["url"] == server.url
        assert f"Kleinbild serves nano at {server.url}/v1" in server.log
        assert f"{server.url}/docs" in server.log
        assert str(tmp_path / "server") in server.log
        page = server.ask("GET", "/docs").text
        files = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(files) == 3
        assert "https://" not in page
        assert [server.ask("GET", file).status_code for file in files] == [200, 200, 200]
        assert server.ask("GET", "/healthz").json()["status"] == "ok"
        assert server.ask("GET", "/readyz").json()["checks"] == {"engine": True, "database": True, "accepting": True}
    assert not announced.exists()


def test_a_data_folder_has_one_server(tmp_path: Path) -> None:
    with serving(tmp_path):
        second = command("serve", "--port", "0", cwd=tmp_path)
        assert second.returncode in (2, 4)
        assert f"another server is running on {tmp_path / 'server'}" in second.stderr
        assert "--data" in second.stderr


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        port = server.url.rsplit(":", 1)[1]
        second = command("serve", "--port", port, "--data", str(tmp_path / "other"), cwd=tmp_path)
        assert second.returncode in (2, 4)
        assert "address already in use" in second.stderr.lower()
        assert server.ask("GET", "/healthz").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_others_are_not_let_in_without_keys(host: str, tmp_path: Path) -> None:
    refused = command("serve", "--host", host, "--port", "0", cwd=tmp_path)
    assert refused.returncode == 2
    assert "can be reached from other machines, and there are no keys" in refused.stderr
    assert "kleinbild keys create" in refused.stderr


def test_what_is_in_force_and_where_from(tmp_path: Path) -> None:
    (tmp_path / "kleinbild.toml").write_text("[server]\nport = 9\n")
    shown = json.loads(command("config", "show", "--json", cwd=tmp_path).stdout)
    assert shown["settings"]["server"]["port"] == 9
    assert shown["sources"] == {"server.port": "kleinbild.toml"}
    assert "server.port" in command("config", "show", cwd=tmp_path).stdout
    (tmp_path / "kleinbild.toml").write_text("[server]\nprot = 9\n")
    wrong = command("serve", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean port?" in wrong.stderr


def test_settings_are_read_again_all_or_none(tmp_path: Path) -> None:
    file = tmp_path / "kleinbild.toml"
    file.write_text("[limits]\nrequests_per_minute = 100\n")

    def limit() -> str | None:
        answer = server.ask("POST", "/v1/images/generations", json={"prompt": PROMPT, "size": "64x64", "steps": 1})
        assert answer.status_code == 200, answer.text
        return answer.headers.get("x-ratelimit-limit-requests")

    process = start(tmp_path)
    try:
        server = ready(process, tmp_path)
        assert limit() == "100"
        for text, said in (
            ("[limits]\nrequests_per_minute = 200\n", "settings were read again"),
            ("[limits]\nrequests_per_minute = 300\nmax_queue = 0\n", "settings stay as they were: limits.max_queue"),
            ("[limits]\nrequests_per_minute = 300\n[server]\ndrain_seconds = 5\n", "server.drain_seconds cannot"),
            ("[limits]\nrequests_per_minute = 300\n[storage]\nurl_minute = 1\n", "unknown setting"),
        ):
            file.write_text(text)
            process.send_signal(signal.SIGHUP)
            until(lambda said=said: said in server.log, 10)
            assert limit() == "200"
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_request_under_way_ends_before_the_server_does(tmp_path: Path) -> None:
    process = start(tmp_path)
    server = ready(process, tmp_path)
    answers: list[httpx2.Response] = []
    body = {"prompt": PROMPT, "n": 2, "steps": 30}
    asking = threading.Thread(target=lambda: answers.append(server.ask("POST", "/v1/images/generations", json=body)))
    asking.start()
    until(lambda: server.ask("GET", "/v1/jobs?status=running").json()["data"])
    with httpx2.stream("GET", f"{server.url}/v1/events", timeout=30) as events:
        process.terminate()
        list(events.iter_bytes())  # a stream that would never end does, so that the server can
    asking.join(60)
    assert answers[0].status_code == 200
    assert len(answers[0].json()["data"]) == 2
    assert process.wait(60) == 0


def test_what_does_not_end_in_time_is_made_after_the_next_start(tmp_path: Path) -> None:
    process = start(tmp_path, KLEINBILD_SERVER__DRAIN_SECONDS="1")
    server = ready(process, tmp_path)
    body = {"task": "image.generate", "input": {"prompt": PROMPT, "n": 10, "steps": 150, "seed": 3}}
    job = server.ask("POST", "/v1/jobs", json=body).json()
    until(lambda: server.ask("GET", f"/v1/jobs/{job['id']}").json()["progress"]["step"] > 0)
    stopping = time.monotonic()
    process.terminate()
    assert process.wait(60) == 0
    assert time.monotonic() - stopping < 15
    with serving(tmp_path) as again:
        assert again.ask("GET", f"/v1/jobs/{job['id']}").json()["status"] in ("queued", "running")
        again.ask("POST", f"/v1/jobs/{job['id']}/cancel")
        assert again.ask("GET", f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"


def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "kleinbild.sqlite").write_bytes(b"this is no database" * 100)
    process = start(tmp_path)
    assert process.wait(60) != 0
    assert "database" in log_of(tmp_path).read_text()
