"""Decoding large pictures in strips against decoding them whole: memory, seconds, and how far the pixels are apart.

    python benchmarks/strips.py [--size 2048 1024] [--dtype bfloat16 float32] [--spec official] [--threads 2] [--json]

Each decode runs in a process of its own, with random weights. Memory is what the process's peak rises by during the
decode (`ru_maxrss`, so CPU only; weights and libraries are not counted). At 2048x2048 the official autoencoder takes
minutes on a few cores. Whole, it takes more than six activations of full size, each 1 GiB in bfloat16 and 2 GiB in
float32: expect twice as much, since the library's kernels copy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[2048], help="sides of square pictures, in pixels")
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16"])
    parser.add_argument("--spec", choices=["official", "nano"], default="official")
    parser.add_argument("--strip-rows", type=int, help="rows of a strip, if not the default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--only", choices=["plain", "strips"], help=argparse.SUPPRESS)  # what the processes are told
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(decode(arguments)))
        return
    # torch and numpy stay out of this process until all is measured: a child's peak begins with its parent's.
    rows = [compare(arguments, size, dtype) for size in arguments.size for dtype in arguments.dtype]
    report(rows, arguments)
    if arguments.json:
        print(json.dumps(rows))


def compare(arguments: argparse.Namespace, size: int, dtype: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        pictures = {way: Path(name) / f"{way}.npy" for way in ("plain", "strips")}
        runs = {way: run(arguments, size, dtype, way, out) for way, out in pictures.items()}
        decibels = psnr(pictures["plain"], pictures["strips"])
    figures = {f"{way}_{key}": value for way, values in runs.items() for key, value in values.items()}
    share = runs["strips"]["mb"] / runs["plain"]["mb"]
    return {"size": size, "dtype": dtype, **figures, "memory_share": round(share, 4), "psnr": round(decibels, 2)}


def run(arguments: argparse.Namespace, size: int, dtype: str, way: str, out: Path) -> dict[str, float]:
    """Megabytes and seconds of one decode in a fresh process; its pixels are written to `out`."""
    options = ["--size", str(size), "--dtype", dtype, "--spec", arguments.spec, "--threads", str(arguments.threads)]
    if arguments.strip_rows:
        options += ["--strip-rows", str(arguments.strip_rows)]
    command = [sys.executable, __file__, *options, "--only", way, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def decode(arguments: argparse.Namespace) -> dict[str, float]:
    import numpy as np
    import torch

    from kleinbild.model.autoencoder import Autoencoder
    from kleinbild.model.spec import AutoencoderSpec
    from kleinbild.model.strips import STRIP_ROWS, decode_in_strips
    from kleinbild.nano.specs import NANO

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, arguments.dtype[0]))  # weights are made in it: no second copy in the peak
    side = arguments.size[0] // 16
    with torch.inference_mode():
        network = Autoencoder(AutoencoderSpec() if arguments.spec == "official" else NANO.autoencoder).eval()
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.2 * weight[0].numel() ** -0.5)  # signals neither die nor explode
        latent_BDrc = torch.randn((1, network.spec.packed_channels, side, side))

        def make(latent_BDrc: torch.Tensor) -> torch.Tensor:
            if arguments.only == "plain":
                return network.decode(latent_BDrc)
            return decode_in_strips(network, latent_BDrc, arguments.strip_rows or STRIP_ROWS)

        make(latent_BDrc[:, :, :2, :2])  # what libraries allocate once is no part of a picture
        before, started = peak_megabytes(), time.perf_counter()
        pixels_BCHW = make(latent_BDrc)
        figures = {"mb": peak_megabytes() - before, "seconds": time.perf_counter() - started}
    np.save(arguments.out, pixels_BCHW.float().numpy())
    return {key: round(value, 3) for key, value in figures.items()}


def peak_megabytes() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == "darwin" else 1)  # bytes on a Mac, kilobytes elsewhere


def psnr(plain: Path, strips: Path) -> float:
    """In dB, of pixels that are about [-1, 1]: a range of 2."""
    import numpy as np

    mean_square = float(np.mean(np.square(np.load(plain) - np.load(strips), dtype=np.float64)))
    return 10 * math.log10(4 / max(mean_square, 1e-20))


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    import torch

    print(
        f"{platform.platform()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.spec} autoencoder"
    )
    print(f"{'':18}{'plain MB':>10}{'strips MB':>10}{'share':>7}{'plain s':>9}{'strips s':>9}{'PSNR':>8}")
    for row in rows:
        print(
            f"{row['size']:>6} {row['dtype']:11}{row['plain_mb']:10.0f}{row['strips_mb']:10.0f}"
            f"{row['memory_share']:7.3f}{row['plain_seconds']:9.1f}{row['strips_seconds']:9.1f}{row['psnr']:8.1f}"
        )


if __name__ == "__main__":
    main()
