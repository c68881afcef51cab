"""Our gateway against the LiteLLM proxy and Portkey's gateway: requests a second, added time, memory.

    python benchmarks/gateway.py [--rivals out/rivals] [--seconds 5] [--repeats 3] [--json]

All ask the same fake provider, which answers at once. The gateway under test runs on core 0; the provider and the
generator of load share core 1. `direct` is the provider without a gateway: what the others add is measured against it.
Each point is the best of several repeats, which take turns among the gateways, as other work on the machine may slow
one of them. A body that a gateway does not serve is reported with its status and text, and nobody wins it.

For the rivals:

    python -m venv out/rivals/litellm && out/rivals/litellm/bin/pip install 'litellm[proxy]'
    npm install --prefix out/rivals/portkey @portkey-ai/gateway

Aims: 8 times LiteLLM's requests a second at its added p99; Portkey's on bodies with pictures; 5 ms of added p99 at 200
requests a second of 1 kB; memory that is bounded and given back.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gateways import contestants
from gateways.bodies import BODIES, Body, answer_of, picture_of, request_of
from gateways.contestants import Gateway, NotStartedError, cpu_seconds, memory_mb
from gateways.load import Target, closed_loop, open_loop, target

OPEN_RATE = 200.0
ADDED_LIMITS_MS = (5.0, 10.0, 50.0, 100.0)
AIM_LITELLM, AIM_PORTKEY, AIM_ADDED_MS = 8.0, 1.0, 5.0
SETTLE_SECONDS = 6.0
SAMPLE_SECONDS = 0.1
WARM_SHARE = 0.2  # of a point's seconds, before it counts


@dataclass(slots=True)
class Result:
    """Of one gateway: a problem, or figures by body. `points` are by body and concurrency."""

    version: str = ""
    problem: str = ""
    not_served: dict[str, str] = field(default_factory=dict)
    points: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rivals", type=Path, default=Path("out/rivals"), help="folder in which they are installed")
    parser.add_argument("--only", default="kleinbild,litellm,portkey", help="gateways, separated by commas")
    parser.add_argument("--bodies", default=",".join(body.name for body in BODIES), help="separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each point")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    bodies = [body for body in BODIES if body.name in arguments.bodies.split(",")]
    cores = os.sched_getaffinity(0)
    contestants.pin(contestants.OTHER_CORE if len(cores) > 1 else min(cores))()
    print(_machine())
    results = run(arguments.only.split(","), bodies, arguments.rivals, arguments.seconds, arguments.repeats)
    found = compared(results)
    print(table(results, found))
    if arguments.json:
        print(json.dumps(found))


def run(names: list[str], bodies: list[Body], rivals: Path, seconds: float, repeats: int) -> dict[str, Result]:
    """The direct way and each gateway, in turns: one that is started again for each repeat would be cold each time, so
    all stay up, and those that are not asked do nothing."""
    results = {name: Result() for name in ("direct", *names)}
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        folder, ports = Path(text), free_ports(len(names) + 1)
        direct = stack.enter_context(contestants.upstream(ports[0]))
        makers: dict[str, Callable[[int], contextlib.AbstractContextManager[Gateway]]] = {
            "kleinbild": lambda port: contestants.ours(folder, port, direct.port),
            "litellm": lambda port: contestants.litellm(folder, port, direct.port, rivals),
            "portkey": lambda port: contestants.portkey(folder, port, direct.port, rivals),
        }
        gateways = [direct]
        for name, port in zip(names, ports[1:], strict=True):
            try:
                gateways.append(stack.enter_context(makers[name](port)))
            except NotStartedError as error:
                results[name].problem = str(error)
        for gateway in gateways:
            results[gateway.name].version = gateway.version
            for body in bodies:
                if problem := asyncio.run(check(gateway, body)):
                    results[gateway.name].not_served[body.name] = problem
        for gateway in gateways[1:]:
            remember_memory(gateway, results[gateway.name], "idle")
        for _ in range(repeats):
            for gateway in gateways:
                measure(gateway, results[gateway.name], bodies, seconds)
        time.sleep(SETTLE_SECONDS if seconds > 1 else 0)
        for gateway in gateways[1:]:
            remember_memory(gateway, results[gateway.name], "afterwards")
    return results


def measure(gateway: Gateway, result: Result, bodies: list[Body], seconds: float) -> None:
    """One repeat of all points, of which the better of this and what there is stays."""
    for body in bodies:
        if body.name in result.not_served:
            continue
        aim = aimed(gateway, body)
        points = result.points.setdefault(body.name, {})
        with peak_memory(gateway, result, sampled=body.name != "1kB"):
            for concurrency in body.concurrency:
                point = closed_point(gateway, aim, concurrency, seconds)
                if concurrency not in points or point["rps"] > points[concurrency]["rps"]:
                    points[concurrency] = point
        if body.name == "1kB":
            measured = asyncio.run(open_loop(aim, OPEN_RATE, seconds * 2))
            figures = {"rps": measured.rps, "wrong": float(measured.wrong.total())}
            figures |= {f"p{percent}_ms": measured.percentile_ms(percent) for percent in (50, 99)}
            if not result.open or figures["p99_ms"] < result.open["p99_ms"]:
                result.open = figures


def closed_point(gateway: Gateway, aim: Target, concurrency: int, seconds: float) -> dict[str, float]:
    before = cpu_seconds(gateway.pid or 0)
    measured = asyncio.run(closed_loop(aim, concurrency, seconds, warm=seconds * WARM_SHARE))
    num_all = len(measured.seconds) / seconds * (1 + WARM_SHARE) * seconds  # those of the warm part, too
    cpu_ms = 1000 * (cpu_seconds(gateway.pid or 0) - before) / max(1.0, num_all)
    return {
        "rps": round(measured.rps, 2),
        "p50_ms": round(measured.percentile_ms(50), 2),
        "p99_ms": round(measured.percentile_ms(99), 2),
        "cpu_ms": round(cpu_ms, 3),
        "wrong": float(measured.wrong.total()),
    }


def aimed(gateway: Gateway, body: Body) -> Target:
    media_type, request = request_of(body, gateway.model)
    least = sum(len(part) for part in answer_of(body)[1]) // (2 if body.stream else 1)
    least = int(least * 0.99) if body.num_pictures > 1 or not body.form else 100
    if body.name == "1kB":
        least = len(base64.b64encode(picture_of(body)))
    return target(gateway.port, body.path, gateway.headers, media_type, request, least)


async def check(gateway: Gateway, body: Body) -> str:
    """Why it does not serve that body; "" if it does: the pictures are those that the provider gave."""
    aim = aimed(gateway, body)
    status, text, kind = await whole_answer(aim)
    if status != 200:
        return f"{status}: {text[:300].decode(errors='replace')}"
    if body.stream:
        names = re.findall(rb"(?m)^event: *(\S+)", text) or re.findall(rb'"type": ?"(image_[^"]+)"', text)
        if b"event-stream" in kind and sum(b"partial" in name for name in names) == 3:
            return ""
        return f"200, {kind.decode()}: {len(names)} events, {text[:120]!r}"
    try:
        files = [base64.b64decode(each["b64_json"]) for each in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        return f"200, but {error!r}: {text[:200]!r}"
    wanted = [picture_of(body, number) for number in range(body.num_pictures)]
    return "" if files == wanted else f"200, but {len(files)} pictures that are not the provider's"


async def whole_answer(aim: Target) -> tuple[int, bytes, bytes]:
    """By other means than the generator of load, which is to be checked by it, too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", aim.port, limit=1 << 27)
    writer.write(aim.request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
    await writer.drain()
    head, _, body = (await asyncio.wait_for(_until_end(reader), 120)).partition(b"\r\n\r\n")
    writer.close()
    if b"transfer-encoding: chunked" in head.lower():
        body = _joined(body)
    kind = re.search(rb"(?i)content-type: *([^\r\n]*)", head)
    return int(head.split(b" ", 2)[1]), body, kind[1] if kind else b""


async def _until_end(reader: asyncio.StreamReader) -> bytes:
    """The provider does not close the connection: the answer's own end is its end."""
    found = b"".join([await reader.readuntil(b"\r\n\r\n")])
    if length := re.search(rb"(?i)\r\ncontent-length: *(\d+)", found):
        return found + await reader.readexactly(int(length[1]))
    parts = [found]
    if b"transfer-encoding: chunked" not in found.lower():
        return found + await reader.read()
    while True:
        size = await reader.readuntil(b"\r\n")
        parts += [size, await reader.readexactly(int(size, 16) + 2)]
        if int(size, 16) == 0:
            return b"".join(parts)


def _joined(chunks: bytes) -> bytes:
    parts, at = [], 0
    while True:
        end = chunks.index(b"\r\n", at)
        size = int(chunks[at:end], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(chunks[end + 2 : end + 2 + size])
        at = end + 4 + size


@contextlib.contextmanager
def peak_memory(gateway: Gateway, result: Result, *, sampled: bool) -> Iterator[None]:
    """The highest of what is seen a few times a second: of large bodies only, as looking takes time, too."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            now = memory_mb(gateway.pid or 0)
            result.memory_mb["peak"] = max(result.memory_mb.get("peak", 0.0), now)

    watching = threading.Thread(target=watch)
    if sampled:
        watching.start()
    try:
        yield
    finally:
        stop.set()
        if sampled:
            watching.join()


def remember_memory(gateway: Gateway, result: Result, name: str) -> None:
    result.memory_mb[name] = memory_mb(gateway.pid or 0)
    result.memory_mb["peak"] = max(result.memory_mb.get("peak", 0.0), result.memory_mb[name])


def compared(results: dict[str, Result]) -> dict[str, Any]:
    """The aims' figures, None where one of the two was not measured, and all raw numbers."""
    ours, direct = results.get("kleinbild", Result()), results["direct"]
    bodies = [*direct.points]
    added = ours.open["p99_ms"] - direct.open["p99_ms"] if ours.open and direct.open else None
    return {
        "rps_vs_litellm": {name: over(results, "litellm", name) for name in bodies},
        "rps_vs_portkey": {name: over(results, "portkey", name) for name in bodies},
        "added_p99_ms": None if added is None else round(added, 2),
        "peak_mb": ours.memory_mb.get("peak"),
        "frontier": {
            name: {body: frontier(result, direct, body) for body in result.points}
            for name, result in results.items()
            if name != "direct"
        },
        "raw": {
            name: {
                "version": result.version, "problem": result.problem, "not_served": result.not_served,
                "points": result.points, "open": result.open, "memory_mb": result.memory_mb,
            }
            for name, result in results.items()
        },
    }  # fmt: skip


def over(results: dict[str, Result], rival: str, body: str) -> float | None:
    """Our most requests a second with no more added p99 than the rival has where it answers the most, over that most."""
    ours, theirs = (results.get(name, Result()).points.get(body) for name in ("kleinbild", rival))
    if not ours or not theirs:
        return None
    best = max(theirs.values(), key=lambda point: point["rps"])
    if best["rps"] == 0:
        return None
    allowed = [point["rps"] for point in ours.values() if point["p99_ms"] <= best["p99_ms"] and not point["wrong"]]
    return round(max(allowed, default=0.0) / best["rps"], 2)


def frontier(result: Result, direct: Result, body: str) -> dict[str, float]:
    """The most requests a second whose added p99 stays within each limit."""
    alone = min(point["p99_ms"] for point in direct.points[body].values())
    points = [point for point in result.points[body].values() if not point["wrong"]]
    return {
        f"<= {limit:g} ms": max((p["rps"] for p in points if p["p99_ms"] - alone <= limit), default=0.0)
        for limit in ADDED_LIMITS_MS
    }


def table(results: dict[str, Result], found: dict[str, Any]) -> str:
    lines = []
    for name, result in results.items():
        lines.append(f"\n{name} {result.version}{' - ' + result.problem if result.problem else ''}")
        for body, why in result.not_served.items():
            lines.append(f"  {body:10} not served: {why}")
        for body, points in result.points.items():
            for concurrency, point in points.items():
                said = "  ".join(f"{key} {value:g}" for key, value in point.items() if key != "wrong" or value)
                lines.append(f"  {body:10} x{concurrency:<3} {said}")
        if result.open:
            said = "  ".join(f"{key} {value:.2f}" for key, value in result.open.items())
            lines.append(f"  1kB at {OPEN_RATE:g}/s: {said}")
        if result.memory_mb and name != "direct":
            lines.append("  memory " + ", ".join(f"{key} {value:.0f} MB" for key, value in result.memory_mb.items()))
    lines.append("")
    for body in found["rps_vs_litellm"]:
        ratios = [f"{rival} {found[f'rps_vs_{rival}'][body] or '-'}" for rival in ("litellm", "portkey")]
        lines.append(f"{body:10} ours over {', '.join(ratios)}")
    lines.append(f"added p99 at {OPEN_RATE:g}/s of 1 kB: {found['added_p99_ms']} ms (aim: {AIM_ADDED_MS:g})")
    lines.append(f"aims: {AIM_LITELLM:g} x LiteLLM, {AIM_PORTKEY:g} x Portkey on bodies with pictures")
    return "\n".join(lines)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _machine() -> str:
    node = shutil.which("node")
    version = (
        subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
        if node
        else "none"
    )
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, node {version}\n"
        f"the gateway on core {contestants.GATEWAY_CORE}; provider and generator on core {contestants.OTHER_CORE}; "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


if __name__ == "__main__":
    main()
