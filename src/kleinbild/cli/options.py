"""The options that commands share: their names, their help, and how their text becomes values.

Each says its default and unit. Values are read here so that a wrong one is an error in our words, before anything is
loaded; what only a model knows (its sizes, its guidance) the engine checks.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from kleinbild.core.adapters import read_use
from kleinbild.core.errors import RequestError
from kleinbild.core.offload import read_offload
from kleinbild.core.precision import choose_precision
from kleinbild.core.requests import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from kleinbild.core.sizes import Size, parse_aspect, parse_size

MAX_PICTURES = 1000
SECONDS = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
YEAR_S = 366 * SECONDS["d"]


def whole_number(name: str, text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise RequestError(
            f"{name} {text!r}: not a whole number from {least} to {most}", f"for example {name} {max(least, 4)}"
        )
    return number


def span(name: str, text: str) -> int:
    """Seconds."""
    match = re.fullmatch(r"([1-9]\d{0,4})([mhdw])", text.strip(), re.ASCII)
    if match is None:
        raise RequestError(f"{name} {text!r}: not a time", "write minutes, hours, days or weeks: 90m, 12h, 30d, 4w")
    return int(match[1]) * SECONDS[match[2]]


def recipe_paths(**given: Path | None) -> dict[str, str]:
    """What options say of a recipe's paths, wherever the recipe is read from."""
    return {key: str(path.expanduser().absolute()) for key, path in given.items() if path is not None}


def read_policy(text: str) -> str:
    """A name, or weights: `cost=0.7,quality=0.3`."""
    from kleinbild.gateway.routing.policy import policy_text

    try:
        if "=" not in text:
            return policy_text(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return policy_text({name.strip(): float(weight) for name, _, weight in pairs})
    except ValueError:
        raise RequestError(f"--policy {text!r}: no weights", "write cost=0.7,quality=0.3") from None
    except RequestError as error:
        raise RequestError(f"--policy {text!r}: {error.message}", error.hint) from None


def read_seed(text: str) -> int:
    return whole_number("--seed", text, 0, MAX_SEED)


def read_steps(text: str) -> int:
    return whole_number("--steps", text, 1, MAX_STEPS)


def read_number(text: str) -> int:
    return whole_number("-n", text, 1, MAX_PICTURES)


def read_place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([+-]?\d{1,9})\s*,\s*([+-]?\d{1,9})\s*", text, re.ASCII)
    if match is None:
        raise RequestError(f"--place {text!r}: not a place", "write LEFT,TOP in pixels, for example --place 32,0")
    return int(match[1]), int(match[2])


def read_guidance(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number <= MAX_GUIDANCE:
        raise RequestError(
            f"--guidance {text!r}: not a number from 1 to {MAX_GUIDANCE:g}", "leave it out for the model's own"
        )
    return number


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A name from `kleinbild models`, or a weight file or folder. Default: nano.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="A file, which is overwritten; a folder (made if PATH ends in /); or - for stdout. "
        "Default: a new file in this folder, named after prompt and seed.",
    ),
]
SizeOption = Annotated[
    Size | None,
    typer.Option(
        "--size",
        metavar="WxH",
        parser=parse_size,
        help="Width x height in pixels, rounded to multiples of 16. "
        "Default: the model's own, of an edit the first picture's, whatever it is.",
    ),
]
Aspect = Annotated[
    float | None,
    typer.Option(
        "--aspect",
        metavar="W:H",
        parser=parse_aspect,
        help="Instead of --size: width to height, such as 3:2, at the model's own area.",
    ),
]
Number = Annotated[
    int,
    typer.Option(
        "--number",
        "-n",
        metavar="N",
        parser=read_number,
        show_default=False,
        help="How many pictures, with seeds S, S+1, … Default: 1.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="S",
        parser=read_seed,
        help="The same seed gives the same picture. Default: drawn at random, and told.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", metavar="K", parser=read_steps, help="Denoising steps. Default: the model's own (4 if distilled)."
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="G",
        parser=read_guidance,
        help="Strength of the prompt, base models only. Default: the model's own.",
    ),
]
Canvas = Annotated[
    Size | None,
    typer.Option(
        "--canvas",
        metavar="WxH",
        parser=parse_size,
        help="A larger size: the first picture stays as it is, and what is around it is made.",
    ),
]
Place = Annotated[
    # A tuple would make typer want two values; this is one, X,Y.
    Any,
    typer.Option(
        "--place",
        metavar="X,Y",
        parser=read_place,
        help="Where on the canvas the picture's left top corner is, in pixels. Default: so that it is in the middle.",
    ),
]
Dtype = Annotated[
    # A Literal would make typer read it itself, with an error in its own words.
    Any,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        parser=choose_precision,
        help="The numbers to compute in: float32, bfloat16, int8 or fp8. Default: float32 for small models, "
        "bfloat16 for large ones.",
    ),
]
CacheReferences = Annotated[
    bool,
    typer.Option(
        "--cache-references",
        help="Faster with large or several pictures: after the first step they are not computed again. "
        "An approximation on models not trained for it; klein-9b-kv does it by itself.",
    ),
]
Adapters = Annotated[
    list[Any] | None,  # as `Dtype`
    typer.Option(
        "--adapter",
        metavar="NAME[:SCALE]",
        parser=read_use,
        help="An adapter, by its name or its file; repeat it for several. Default for SCALE: what its card recommends.",
    ),
]
OffloadOption = Annotated[
    Any,  # as `Dtype`
    typer.Option(
        "--offload",
        metavar="WAY",
        parser=read_offload,
        help="For GPUs smaller than the model: none (all weights stay on the GPU), components (text encoder and "
        "transformer in turns) or blocks (two at a time). The picture is the same. Default: the fastest that fits.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="png, jpeg or webp. Default: what PATH ends in, else png."),
]
Local = Annotated[bool, typer.Option("--local", help="Make it in this process, even if a server runs.")]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Let the server at URL make it. Default: that of KLEINBILD_BASE_URL, else one that runs on this machine, "
        "else this process.",
    ),
]
RunningServer = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="The server that is asked. Default: that of KLEINBILD_BASE_URL, else the one that runs on this machine.",
    ),
]
Regularization = Annotated[
    Path | None,
    typer.Option("--reg", metavar="DIR", show_default=False, help="Pictures of what shall stay as it is."),
]
Validation = Annotated[
    Path | None,
    typer.Option(
        "--validation",
        metavar="DIR",
        show_default=False,
        help="Examples to measure on, never trained on. Default: some of the data's own.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Results on stdout as JSON.")]
Show = Annotated[bool, typer.Option("--show", help="Open each picture when it is done.")]
