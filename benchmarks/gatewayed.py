"""A gateway process before simulated providers, for the programs beside this file: started, killed, asked, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

HERE = Path(__file__).parent
KEY, SECRET = "test-key", "secret-of-"
START_SECONDS = 60.0


@dataclass(slots=True)
class Simulated:
    """The simulator's process: accounts of OpenAI's kind by name, with the dollars that a picture costs there."""

    prices: dict[str, str]
    url: str = ""
    accounts: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        named = [word for name, price in self.prices.items() for word in ("--account", f"{name}:openai:0:{price}")]
        command = [sys.executable, "-m", "simulator", "--key", KEY, *named]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.url, self.accounts = told["url"], told["accounts"]

    def put(self, name: str, what: str, body: dict[str, Any]) -> None:
        httpx2.put(f"{self.url}/_sim/{name}/{what}", json=body).raise_for_status()

    def bill(self, name: str, after: int = 0) -> dict[str, Any]:
        """Without the first `after` items."""
        url = f"{self.url}/_sim/{name}/bill"
        found: dict[str, Any] = httpx2.get(url, params={"after": after}, timeout=60.0).json()
        return found

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)


@dataclass(slots=True)
class Gateway:
    """`kleinbild serve` in `folder`, and whoever comes after it there."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.folder / "kleinbild.sqlite"

    def configure(self, simulated: Simulated, budgets: dict[str, str], routing: str = "") -> None:
        """`budgets` are dollars by the names of callers' keys."""
        tables = ["[routing]", 'policy = "cost"', routing]
        for name, price in simulated.prices.items():
            base = f"{simulated.accounts[name]['url']}/v1"
            tables.append(f'[[providers]]\nname="{name}"\nkind="openai"\nbase_url="{base}"\napi_key_env="PROVIDER_KEY"')
            tables.append(
                f'[[deployments]]\nname="{name}-sketch"\nmodel="sketch"\nprovider="{name}"\nprovider_model="gpt-image-2"\n'
                f'price={{ per_image = "{price}" }}\nquality=0.7\ntasks=["image.generate"]'
            )
        for name, amount in budgets.items():
            budget = f'{{ amount="{amount}", window="30d" }}'
            tables.append(f'[[keys]]\nname="{name}"\nsecret_env="SECRET_{name.upper()}"\nbudget={budget}')
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "kleinbild.toml").write_text("\n".join(tables) + "\n")
        self._secrets = {f"SECRET_{name.upper()}": f"{SECRET}{name}" for name in budgets}

    def start(self) -> None:
        config = str(self.folder / "kleinbild.toml")
        command = [sys.executable, "-m", "kleinbild", "serve", "--port", str(self.port), "--data", str(self.folder)]
        self._announced.unlink(missing_ok=True)
        environment = {**os.environ, **self._secrets, "PROVIDER_KEY": KEY, "KLEINBILD_HOME": str(self.folder)}
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen([*command, "--config", config], stdout=log, stderr=log, env=environment)

    async def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + START_SECONDS
        async with httpx2.AsyncClient() as client:
            while time.monotonic() < until and self.process is not None and self.process.poll() is None:
                with contextlib.suppress(OSError, ValueError, httpx2.TransportError):
                    self.port = int(json.loads(self._announced.read_text())["url"].rsplit(":", 1)[1])
                    await client.get(f"{self.url}/healthz")
                    return
                await asyncio.sleep(0.05)
        raise TimeoutError((self.folder / "gateway.log").read_text()[-4000:])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)

    _secrets: dict[str, str] = field(default_factory=dict)

    @property
    def _announced(self) -> Path:
        return self.folder / "server" / "server.json"
