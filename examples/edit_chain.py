"""One picture, changed step by step; each result is the start of the next: `python examples/edit_chain.py`."""

from __future__ import annotations

from pathlib import Path

import kleinbild

CHANGES = (
    "change the background to a sunset",
    "replace the fox with a penguin",
    "change the background to a meadow",
)


def main() -> None:
    out = Path("out")
    out.mkdir(exist_ok=True)
    picture = kleinbild.generate("a fox on a mint background", seed=1)
    print(picture.save(out / "chain-0.png"))
    for number, change in enumerate(CHANGES, start=1):
        picture = kleinbild.edit(change, picture, seed=number)
        print(picture.save(out / f"chain-{number}.png"), f"{change!r}, {sum(picture.timings.values()):.2f} s")


if __name__ == "__main__":
    main()
