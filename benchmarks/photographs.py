"""What nano keeps of pictures that are not of its world, such as photographs: by its autoencoder alone, and in an edit.

    python benchmarks/photographs.py [PICTURE...] [--sheet FILE] [--json]

Each picture, cut and scaled to 128x128, goes through the autoencoder and back, and is edited: `EDIT` adds a thing in one
corner and has no business elsewhere. PSNR in dB against the picture; of the edit without that corner. With no pictures given, the
well-known test images of scikit-image and scikit-learn are taken (`pip install --no-deps scikit-image scikit-learn`; neither is
imported): faces, a cat, buildings, textures, a page of text.
"""

from __future__ import annotations

import argparse
import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from kleinbild.core.requests import PictureRequest
from kleinbild.engine.runtime import Engine
from kleinbild.nano.scenes.oracle import psnr
from kleinbild.nano.scenes.render import SIDE, Pixels

EDIT = "add a fox in the top left corner"
CORNER = (slice(0, SIDE // 2), slice(0, SIDE // 2))  # where the fox may be
KNOWN = {
    "skimage/data": "astronaut brick camera chelsea coffee coins grass gravel hubble_deep_field ihc motorcycle_left page"
    " retina rocket text",
    "sklearn/datasets/images": "china flower",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--sheet", type=Path, help="picture, round trip and edit of each, one below the other")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    engine = Engine(arguments.model)
    rows, columns = [], []
    for path in arguments.pictures or known_pictures():
        with Image.open(path) as file:
            picture = ImageOps.fit(file.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        before, kept, edited = np.asarray(picture), round_trip(engine, picture), edit(engine, picture)
        elsewhere = np.ones(before.shape[:2], bool)
        elsewhere[CORNER] = False
        rows.append((path.stem, psnr(kept, before), psnr(edited[elsewhere], before[elsewhere])))
        columns.append(np.concatenate((before, kept, edited)))
        print(f"{rows[-1][0]:24} autoencoder {rows[-1][1]:5.1f} dB, edit {rows[-1][2]:5.1f} dB")
    means = {"autoencoder": float(np.mean([row[1] for row in rows])), "edit": float(np.mean([row[2] for row in rows]))}
    print(f"{len(rows)} pictures: autoencoder {means['autoencoder']:.1f} dB, edit {means['edit']:.1f} dB")
    if arguments.sheet:
        Image.fromarray(np.concatenate(columns, axis=1)).save(arguments.sheet)
    if arguments.json:
        print(json.dumps({"count": len(rows), **means}))


def known_pictures() -> list[Path]:
    paths = []
    for folder, names in KNOWN.items():
        package, *inner = folder.split("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"no {package} here: pip install --no-deps scikit-image scikit-learn, or give pictures")
        there = Path(spec.origin).parent.joinpath(*inner)
        paths += [next(there.glob(f"{name}.*")) for name in names.split()]
    return paths


@torch.inference_mode()
def round_trip(engine: Engine, picture: Image.Image) -> Pixels:
    autoencoder = engine.model.autoencoder
    x_BCHW = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    out_BCHW = autoencoder.decode(autoencoder.encode(x_BCHW.to(engine.model.device)))
    pixels: Pixels = ((out_BCHW[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def edit(engine: Engine, picture: Image.Image) -> Pixels:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    request = PictureRequest(EDIT, model=engine.name, seed=1, references=(buffer.getvalue(),))
    return np.asarray(engine.generate(request).pil)


if __name__ == "__main__":
    main()
