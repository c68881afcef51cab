"""`kleinbild generate` and `kleinbild edit`: from a command line to a request and wishes about the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.wishes import Wishes
from kleinbild.core.errors import PromptError, RequestError
from kleinbild.core.requests import PictureRequest


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What the picture shows, in quotes. Not needed with --from."),
    ] = None,
    model: options.Model = None,
    output: options.Output = None,
    size: options.SizeOption = None,
    aspect: options.Aspect = None,
    number: options.Number = 1,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    adapters: options.Adapters = None,
    dtype: options.Dtype = None,
    offload: options.OffloadOption = None,
    file_format: options.Format = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Make the picture in FILE again, to the pixel. With PROMPT, --seed, --size, … those are changed.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--image", "-i", metavar="IMAGE", help="With --from: the pictures that FILE was made from, if they moved."
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="MASK", help="With --from: the mask that FILE was made with, if it moved."),
    ] = None,
    local: options.Local = False,
    server: options.ServerOption = None,
    as_json: options.Json = False,
    show: options.Show = False,
) -> None:
    """Make a picture from words."""
    wishes = Wishes(output, file_format, number, as_json, show, dtype, offload, local, server)
    asked = given(
        model=model,
        prompt=prompt,
        size=size,
        aspect=aspect,
        seed=seed,
        steps=steps,
        guidance=guidance,
        adapters=tuple(adapters) if adapters else None,
    )
    if source is not None:
        from kleinbild.cli.replay import make_again

        make_again(source, images or [], mask, asked, wishes)
    elif images or mask:
        raise RequestError(
            "generate starts from words alone",
            f"to change a picture: kleinbild edit PROMPT -i {images[0] if images else 'IMAGE'}",
        )
    elif prompt is None:
        raise PromptError("there is no prompt", 'for example: kleinbild generate "a fox on a mint background"')
    else:
        from kleinbild.cli.making import make

        make(replace(PictureRequest(prompt), **asked), wishes)


def edit(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help='What to do, in quotes. It may speak of "image 1", "image 2", …')
    ],
    images: Annotated[
        list[str],
        typer.Option(
            "--image", "-i", metavar="IMAGE", help="A picture to start from; repeat it for more, in order; - is stdin."
        ),
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="MASK",
            help="A picture of the first one's size: where it is transparent, that is made anew; "
            "where it is opaque, every pixel stays.",
        ),
    ] = None,
    canvas: options.Canvas = None,
    place: options.Place = None,
    cache_references: options.CacheReferences = False,
    model: options.Model = None,
    output: options.Output = None,
    size: options.SizeOption = None,
    aspect: options.Aspect = None,
    number: options.Number = 1,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    adapters: options.Adapters = None,
    dtype: options.Dtype = None,
    offload: options.OffloadOption = None,
    file_format: options.Format = None,
    local: options.Local = False,
    server: options.ServerOption = None,
    as_json: options.Json = False,
    show: options.Show = False,
) -> None:
    """Change a picture, or combine several."""
    from kleinbild.cli.inputs import read_mask, read_references
    from kleinbild.cli.making import make

    asked = given(
        model=model,
        size=size,
        aspect=aspect,
        seed=seed,
        steps=steps,
        guidance=guidance,
        canvas=canvas,
        place=place,
        mask=mask and read_mask(mask),
        mask_name=mask and mask.name,
        cache_references=cache_references,
        adapters=tuple(adapters) if adapters else None,
    )
    files, names = read_references(images)
    request = PictureRequest(prompt, references=files, reference_names=names)
    make(replace(request, **asked), Wishes(output, file_format, number, as_json, show, dtype, offload, local, server))


def given(**values: Any) -> dict[str, Any]:
    """What was said on the command line; the rest is the request's to settle."""
    return {name: value for name, value in values.items() if value is not None}
