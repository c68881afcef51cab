"""Providers that fail in every way that real ones do, and count what they would bill.

    python -m simulator --port 0 --kind openai --kind bfl            # with benchmarks/ on the path

One process serves several accounts; see `running` for where they are and how they are told to fail, and `faults` for how
they fail. Seeds settle what goes wrong. In a program: `running` (asyncio) or `in_background` (a thread).
"""

from simulator.accounts import AccountSettings
from simulator.faults import FAULTS
from simulator.running import KINDS, Simulator, in_background, running

__all__ = ["FAULTS", "KINDS", "AccountSettings", "Simulator", "in_background", "running"]
