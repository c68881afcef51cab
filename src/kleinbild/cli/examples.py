"""Examples that the help and docs/cli.md show. A test runs them in this order, in one folder."""

from __future__ import annotations

GENERATE = (
    'kleinbild "a fox on a mint background"',
    'kleinbild generate "two cats in the snow" -n 2 --seed 7 -o cats/',
    'kleinbild generate "a red apple on a beach" --aspect 3:2 -o apple.png',
    "kleinbild generate --from apple.png -o again.png",
    'kleinbild generate "a rocket on a night sky" --json',
)
EDIT = (
    'kleinbild edit "replace the red apple with a lemon" -i apple.png -o lemon.png',
    'kleinbild generate "a sailboat on an ocean gradient" -o boat.png',
    'kleinbild edit "put the object of image 1 on the background of image 2" -i lemon.png -i boat.png',
    'kleinbild edit "change the background to purple" -i - -o - < boat.png > purple.png',
    'kleinbild edit "add a lemon to the left" -i boat.png --canvas 192x128 --place 64,0 -o wide.png',
)


def block(examples: tuple[str, ...]) -> str:
    """Lines that the help leaves as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
