"""Pictures of different sizes and steps in one packed pass, each as if it were made alone: `python examples/packed.py`."""

from __future__ import annotations

import time
from pathlib import Path

from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.runtime import Engine

REQUESTS = (
    PictureRequest("a fox on a mint background", seed=1),
    PictureRequest("two cats in the snow", size=Size(192, 128), seed=2),
    PictureRequest("a rocket on a night sky", size=Size(128, 192), steps=8, seed=3),
)


def main() -> None:
    out = Path("out")
    out.mkdir(exist_ok=True)
    engine = Engine()
    begun = time.perf_counter()
    pictures = engine.generate_all(REQUESTS)
    print(f"{len(pictures)} pictures in {time.perf_counter() - begun:.2f} s")
    for picture in pictures:
        print(picture.save(out / f"packed-{picture.seed}.png"), picture.record.size, picture.record.steps, "steps")
    alone = engine.generate(REQUESTS[1])
    print("made alone, the second is", "the same" if alone.pil == pictures[1].pil else "another picture")


if __name__ == "__main__":
    main()
