"""Runs the simulator until it is told to stop. The first line printed is JSON: where everything is.

python -m simulator [--port 0] [--kind openai …] [--account NAME:KIND:PORT:PRICE …] [--key test-key] [--price 0.010]
    [--latency 0.003] [--faults '{"no_answer": 0.01}'] [--seed 0] [--honours-keys]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal

from simulator.accounts import AccountSettings
from simulator.running import KINDS, quick, running


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulator", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="the control port; 0 is any")
    parser.add_argument("--kind", action="append", default=[], choices=KINDS, help="an account named as its kind")
    parser.add_argument("--account", action="append", default=[], metavar="NAME:KIND[:PORT[:PRICE]]")
    parser.add_argument("--key", default="test-key", help="of all accounts")
    parser.add_argument("--price", default="0.010", help="dollars for each picture")
    parser.add_argument("--latency", type=float, default=0.003, help="median, in seconds")
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON: shares by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--honours-keys", action="store_true", help="an Idempotency-Key works")
    arguments = parser.parse_args()
    named = [account.split(":") for account in arguments.account] + [[kind, kind] for kind in arguments.kind]
    accounts = [
        AccountSettings(
            name,
            kind,
            key=arguments.key,
            price={"per_image": rest[1] if len(rest) > 1 else arguments.price},
            latency=arguments.latency,
            faults=arguments.faults,
            seed=arguments.seed + number,
            honours_keys=arguments.honours_keys,
            port=int(rest[0]) if rest else 0,
        )
        for number, (name, kind, *rest) in enumerate(named or [["openai", "openai"]])
    ]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(accounts, arguments.port))


async def serve(accounts: list[AccountSettings], port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running(accounts, port) as simulator:
        quick()
        print(json.dumps({"url": simulator.url, "accounts": simulator.where()}), flush=True)
        await stop.wait()


if __name__ == "__main__":
    main()
