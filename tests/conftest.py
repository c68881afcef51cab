"""For all tests, whether they run one after another or beside each other (`make test` does both)."""

from __future__ import annotations

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported, and for all processes that tests start: threads of several programs on the same cores wait
    # for each other, and both are slower by a multiple.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A property says nothing of time, and whatever runs beside a test takes some of it.
settings.register_profile("without deadline", settings.default, deadline=None)
settings.load_profile("without deadline")
