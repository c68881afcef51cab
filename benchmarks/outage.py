"""Two of three providers are down and one comes and goes: how many of the requests that somebody could serve are served.

    python benchmarks/outage.py [--requests 2000] [--clients 8] [--json]

The third provider is up for 2 s and down for 0.2 s; a request that arrives meanwhile could be served a moment later. The
latency that the outage adds is told beside that of the same requests with all providers up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from gatewayed import SECRET, Gateway, Simulated

PRICES = {"alpha": "0.010", "beta": "0.014", "gamma": "0.0235"}
DOUBLE = 'allow_double_up_to = "0.05"'  # who wants every picture lets a lost answer be asked for again
AIM = 0.9999


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(Path(folder), arguments.requests, arguments.clients))
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    for name, value in found.items():
        print(f"{name:32}{value}")
    if arguments.json:
        print(json.dumps(found))
    sys.exit(found["served"] < AIM)


async def run(folder: Path, num_requests: int, num_clients: int) -> dict[str, Any]:
    simulated, gateway = Simulated(PRICES), Gateway(folder / "data")
    try:
        simulated.start()
        gateway.configure(simulated, {"shop": "100000"}, "failures = 3\nrest_seconds = 1\n" + DOUBLE)
        gateway.start()
        await gateway.wait()
        usual = await ask(gateway, num_requests, num_clients)
        for name in ("alpha", "beta"):
            simulated.put(name, "outage", {"state": "down"})
        simulated.put("gamma", "outage", {"state": "flapping", "up_seconds": 2.0, "down_seconds": 0.2})
        hard = await ask(gateway, num_requests, num_clients)
    finally:
        gateway.stop()
        simulated.stop()
    served = [seconds for status, seconds in hard if status == 200]
    usually = [seconds for _, seconds in usual]
    return {
        "requests": num_requests,
        "served": round(len(served) / num_requests, 6),
        "aim": AIM,
        "statuses": {status: sum(each == status for each, _ in hard) for status in sorted({each for each, _ in hard})},
        "usual_p50_ms": _ms(usually, 50),
        "usual_p99_ms": _ms(usually, 99),
        "outage_p50_ms": _ms(served, 50),
        "outage_p99_ms": _ms(served, 99),
    }


async def ask(gateway: Gateway, num_requests: int, num_clients: int) -> list[tuple[int, float]]:
    numbers, found = iter(range(num_requests)), list[tuple[int, float]]()
    headers = {"authorization": f"Bearer {SECRET}shop"}

    async def client() -> None:
        async with httpx2.AsyncClient(timeout=60.0, headers=headers) as http:
            for number in numbers:
                body = {"model": "sketch", "prompt": f"fox {number}", "size": "256x256"}
                begun = time.monotonic()
                answer = await http.post(f"{gateway.url}/v1/images/generations", json=body)
                found.append((answer.status_code, time.monotonic() - begun))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return found


def _ms(seconds: list[float], percent: int) -> float:
    return round(statistics.quantiles(seconds, n=100)[percent - 1] * 1000, 1) if len(seconds) > 1 else 0.0


if __name__ == "__main__":
    main()
