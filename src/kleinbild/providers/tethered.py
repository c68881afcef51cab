"""Runs a module as this process's main one, alone in its folder, for as long as somebody holds the other end of stdin.

    python -m kleinbild.providers.tethered MODULE FOLDER

When stdin ends, whoever started it is gone, be it by SIGKILL: the process then sends itself SIGTERM, at which the module
keeps what it has and ends. One that is still at that in the same folder is waited for.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

GRACE_SECONDS = 60.0


def main() -> None:
    module, folder = sys.argv[1:3]
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with (Path(folder) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sys.argv = [module, folder]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
