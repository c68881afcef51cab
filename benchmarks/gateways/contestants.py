"""The gateways, each started as its users would with one worker, and its image model at the fake provider.

Ours has keys, a budget and its ledger on. LiteLLM has a master key and no database, which spares it all accounting; so
does Portkey's gateway, which has neither keys nor budgets in its open edition.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

GATEWAY_CORE, OTHER_CORE = 0, 1
START_SECONDS = 120.0
NICE = -10  # measured processes come before whatever else this machine does; where that is not allowed, as all others
OUR_KEY = "kb_bench000_" + "0" * 52
LITELLM_KEY = "sk-benchmark"
LITELLM = """
model_list:
  - model_name: sketch
    litellm_params: {{model: openai/gpt-image-2, api_base: "http://127.0.0.1:{upstream}/v1", api_key: provider-key}}
    model_info: {{mode: image_generation}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false, set_verbose: false}}
"""
OURS = """
[engine]
models = []
[[providers]]
name = "alpha"
kind = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key_env = "ALPHA_KEY"
[[deployments]]
name = "alpha-sketch"
model = "sketch"
provider = "alpha"
provider_model = "gpt-image-2"
price = {{ per_image = "0.010" }}
[[keys]]
name = "shop"
secret_env = "SHOP_KEY"
budget = {{ amount = "5000.00", window = "30d" }}
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """`model` and `headers` are what its callers send."""

    name: str
    version: str
    port: int
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    pid: int | None = None


class NotStartedError(Exception):
    """With what it said."""


@contextlib.contextmanager
def upstream(port: int) -> Iterator[Gateway]:
    """The fake provider itself, beside the generator: what is measured without a gateway."""
    program = Path(__file__).with_name("upstream.py")
    with _process([sys.executable, str(program), str(port)], None, core=OTHER_CORE) as process:
        _wait(process, port, "/", None)
        yield Gateway("direct", "no gateway", port, "gpt-image-2", {"authorization": "Bearer x"}, process.pid)


@contextlib.contextmanager
def ours(folder: Path, port: int, upstream_port: int) -> Iterator[Gateway]:
    import kleinbild

    config, log = folder / "kleinbild.toml", folder / "kleinbild.log"
    config.write_text(OURS.format(upstream=upstream_port))
    command = [sys.executable, "-m", "kleinbild", "serve", "--config", str(config), "--port", str(port)]
    more = {"KLEINBILD_HOME": str(folder / "home"), "ALPHA_KEY": "provider-key", "SHOP_KEY": OUR_KEY}
    with _process(command, log, more=more) as process:
        _wait(process, port, "/readyz", log)
        headers = {"authorization": f"Bearer {OUR_KEY}"}
        yield Gateway("kleinbild", kleinbild.__version__, port, "sketch", headers, process.pid)


@contextlib.contextmanager
def litellm(folder: Path, port: int, upstream_port: int, rivals: Path) -> Iterator[Gateway]:
    program, log = rivals / "litellm/bin/litellm", folder / "litellm.log"
    if not program.exists():
        raise NotStartedError(
            f"not installed: there is no {program}; python -m venv {rivals}/litellm, "
            f"{rivals}/litellm/bin/pip install 'litellm[proxy]'"
        )
    config = folder / "litellm.yaml"
    config.write_text(LITELLM.format(upstream=upstream_port, key=LITELLM_KEY))
    asked = "from importlib.metadata import version; print(version('litellm'))"
    said = subprocess.run([str(program.with_name("python")), "-c", asked], capture_output=True, text=True, check=True)
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    more = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with _process(command, log, more=more) as process:
        _wait(process, port, "/health/readiness", log)
        headers = {"authorization": f"Bearer {LITELLM_KEY}"}
        yield Gateway("litellm", said.stdout.strip(), port, "sketch", headers, process.pid)


@contextlib.contextmanager
def portkey(folder: Path, port: int, upstream_port: int, rivals: Path) -> Iterator[Gateway]:
    package, log = rivals / "portkey/node_modules/@portkey-ai/gateway", folder / "portkey.log"
    if not package.exists():
        raise NotStartedError(
            f"not installed: there is no {package}; npm install --prefix {rivals}/portkey @portkey-ai/gateway"
        )
    version = json.loads((package / "package.json").read_text())["version"]
    command = ["node", str(package / "build/start-server.js"), f"--port={port}", "--headless"]
    with _process(command, log, more={"NODE_ENV": "production"}) as process:
        _wait(process, port, "/", log)
        headers = {
            "authorization": "Bearer provider-key",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{upstream_port}/v1",
        }
        yield Gateway("portkey", version, port, "gpt-image-2", headers, process.pid)


def memory_mb(pid: int) -> float:
    """Of a process and all below it: their share of memory (Pss), in MB."""
    total = 0.0
    for each in (pid, *_below(pid)):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:"))
    return round(total, 1)


def cpu_seconds(pid: int) -> float:
    """That a process and all below it have used so far."""
    total = 0
    for each in (pid, *_below(pid)):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _below(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [each for child in children for each in (child, *_below(child))]


def pin(core: int) -> Callable[[], None]:
    """To be called in the process that is to run on that core alone, and before others."""

    def pinned() -> None:
        os.sched_setaffinity(0, {core})
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)

    return pinned


@contextlib.contextmanager
def _process(
    command: list[str], log: Path | None, *, more: dict[str, str] | None = None, core: int = GATEWAY_CORE
) -> Iterator[subprocess.Popen[bytes]]:
    with contextlib.ExitStack() as stack:
        said = subprocess.DEVNULL if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=said,
            env={**os.environ, **(more or {})},
            preexec_fn=pin(core),  # noqa: PLW1509 - no thread runs yet
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, path: str, log: Path | None) -> None:
    """Until it answers there, whatever it is; of `/readyz` and the like, well."""
    until, problem = time.monotonic() + START_SECONDS, ""
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                return
        except urllib.error.HTTPError as error:
            if path == "/":
                return
            problem = str(error)
        except OSError as error:
            problem = str(error)
        time.sleep(0.1)
    said = "" if log is None else log.read_text()[-1500:].strip()
    raise NotStartedError(f"did not start (exit {process.poll()}): {said or problem}")
