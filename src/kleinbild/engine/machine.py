"""Facts about this machine, read from the system. None where it does not tell."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # x86's matrix and vector units, Arm's
TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags() -> list[str] | None:
    """Those of the processor's abilities that matter for speed, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    flags = next((line.split(":")[1].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return [flag for flag in TELLING_FLAGS if flag in flags]


def memory() -> tuple[int, int] | None:
    """Bytes in all and bytes free for a program; a container's limit counts."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, available = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    limit = _container_limit()
    return (total, available) if limit is None else (min(total, limit), min(available, limit))


def peak_memory() -> int | None:
    """The most bytes that this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hub() -> tuple[str, float | str]:
    """The hub's address, and the seconds that it took to answer or why it did not."""
    import urllib.request

    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    begun = time.perf_counter()
    try:
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the address is the user's own
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return address, time.perf_counter() - begun
    except (OSError, ValueError) as error:
        return address, str(getattr(error, "reason", error))


def _container_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
