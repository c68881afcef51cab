"""Pictures from three prompts, one edit and one composition of two pictures, into `out/`: what `make demo` runs."""

from __future__ import annotations

import time
from pathlib import Path

import kleinbild

PROMPTS = (
    "a fox on a mint background",
    "a penguin to the left of a snowman in the snow",
    "three strawberries on a peach gradient",
)


def main() -> None:
    out = Path("out")
    out.mkdir(exist_ok=True)

    def keep(picture: kleinbild.Picture, name: str, seconds: float) -> kleinbild.Picture:
        path = picture.save(out / name)
        print(f"{path}  {seconds:.2f} s  seed {picture.seed}  {picture.record.prompt!r}")
        return picture

    def timed(make, *arguments, **options):  # noqa: ANN001, ANN002, ANN003, ANN202  # any of the two calls below
        started = time.perf_counter()
        picture = make(*arguments, **options)
        return picture, time.perf_counter() - started

    pictures = []
    for number, prompt in enumerate(PROMPTS, start=1):
        picture, seconds = timed(kleinbild.generate, prompt, seed=number)
        pictures.append(keep(picture, f"{number}-picture.png", seconds))
    edited, seconds = timed(kleinbild.edit, "replace the penguin with a cat", pictures[1], seed=4)
    keep(edited, "4-edit.png", seconds)
    composed, seconds = timed(
        kleinbild.edit, "put the object of image 1 on the background of image 2", [pictures[0], edited], seed=5
    )
    keep(composed, "5-composition.png", seconds)


if __name__ == "__main__":
    main()
