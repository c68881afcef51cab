"""The end of the recipe: latents to pixels, pixels to a picture with its record.

Shape suffixes: B batch, C channels, H W pixels, D channels of a packed latent, r c its rows and columns.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from kleinbild import __version__
from kleinbild.core.errors import KleinbildError
from kleinbild.core.metadata import AdapterRecord, Record
from kleinbild.core.sizes import LARGE_PICTURE
from kleinbild.engine.compiled import Compiled
from kleinbild.engine.latents import Sequence
from kleinbild.engine.prepare import Prepared
from kleinbild.model.strips import decode_in_strips
from kleinbild.model.weights import Model


def decode(model: Model, sequence: Sequence, compiled: Compiled | None = None) -> Tensor:
    """A finished sequence to pixels (1, 3, H, W), float32, about [-1, 1]. Each picture is decoded alone."""
    latent_BDrc = sequence.grid.to(model.dtype)
    num_pixels = latent_BDrc[0, 0].numel() * model.spec.autoencoder.pixels_per_token**2
    if num_pixels > LARGE_PICTURE:
        return decode_in_strips(model.autoencoder, latent_BDrc).float()
    network = model.autoencoder if compiled is None else compiled
    return network.decode(latent_BDrc).float()


def to_image(pixels_BCHW: Tensor) -> Image.Image:
    """Pixels of one picture, clipped to [-1, 1] and rounded to 8 bits. Raises KleinbildError if any is not a number."""
    if not torch.isfinite(pixels_BCHW).all():
        raise KleinbildError(
            "the model computed something that is not a picture (NaN or infinite pixels)",
            "check the weights with `kleinbild models check`, or compute in float32",
        )
    levels_BCHW = ((pixels_BCHW / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels_BCHW[0].permute(1, 2, 0).cpu().contiguous().numpy())


def as_asked(image: Image.Image, prepared: Prepared) -> Image.Image:
    """What the model made to the picture asked for: of its own size, and with a mask over the input."""
    inputs = prepared.inputs
    image = inputs.frame.out_of(image)
    return image if inputs.masked is None else inputs.masked.over(image, inputs.frame)


def record(model: Model, prepared: Prepared, adapters: tuple[AdapterRecord, ...] = ()) -> Record:
    """What goes into the file, so that the same picture can be made again."""
    request, inputs = prepared.request, prepared.inputs
    return Record(
        version=__version__,
        model=model.name,
        fingerprint=model.fingerprint,
        prompt=request.prompt,
        seed=prepared.seed,
        steps=prepared.steps,
        guidance=prepared.guidance,
        size=inputs.frame.size,
        dtype=model.precision,
        device=model.device.type,
        references=request.reference_records(),
        input_size=inputs.masked is not None or not inputs.frame.is_plain,
        mask=request.mask_record(),
        canvas=request.canvas,
        place=inputs.place,
        cache_references=prepared.reference_mode == "keep",
        adapters=adapters,
        revised_prompt="" if prepared.prompt == request.prompt else prepared.prompt,
    )
