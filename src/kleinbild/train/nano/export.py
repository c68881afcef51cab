"""Writes the trained networks as a model that the engine loads: `python -m kleinbild.train.nano.export --out FOLDER`.

bfloat16 safetensors in the layouts of the official files, settings and tokenizer beside them. The moving averages are
written, not the last weights. Base and student share autoencoder, text encoder and tokenizer.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kleinbild.model.catalog import PACKAGED
from kleinbild.model.weights.settings import Settings, write_settings
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_state

STUDENT = Settings(
    text_layers=NANO.text_encoder.layers,
    max_text_tokens=NANO.text_encoder.max_tokens,
    default_steps=4,
    default_guidance=1.0,
    default_size=128,
    distilled=True,
    vocabulary="nano",
    min_side=64,
    max_side=256,
    max_pixels=256 * 256,
    num_groups=NANO.autoencoder.num_groups,
)
BASE_STEPS, BASE_GUIDANCE = 25, 1.5


def base_settings() -> Settings:
    return Settings.from_json(
        {**STUDENT.to_json(), "default_steps": BASE_STEPS, "default_guidance": BASE_GUIDANCE, "distilled": False}
    )


def export(run: Path, out: Path) -> list[Path]:
    """Writes all files of both models to `out`; without a student yet, only the base. Returns the weight files."""
    base = load_state(run / "flow.pt")
    if base is None:
        raise SystemExit(f"{run / 'flow.pt'}: nothing trained yet; run python -m kleinbild.train.nano.flow first")
    student = load_state(run / "student.pt")
    if student is not None and student.get("base_step") != base["step"]:
        raise SystemExit(
            f"{run / 'student.pt'}: its base was another than flow.pt; run python -m kleinbild.train.nano.distill, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    finished = load_state(run / "finish.pt")
    autoencoder = finished["autoencoder"] if finished else load_file(run / "autoencoder.safetensors")
    files = {
        "nano-base.safetensors": part(base["average"], "transformer."),
        "text_encoder.safetensors": part(base["average"], "text_encoder."),
        "autoencoder.safetensors": part(autoencoder, ""),
    }
    write_settings(out / "nano-base.json", base_settings())
    if student is not None:
        files["nano.safetensors"] = part(student["average"], "transformer.")
        write_settings(out / "nano.json", STUDENT)
    for name, tensors in files.items():
        save_file(tensors, out / name)
    shutil.copytree(run / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    return [out / name for name in files]


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One network's tensors under their own names; floating-point ones in bfloat16, statistics in float32."""
    tensors = {}
    for name, tensor in state.items():
        if name.startswith(prefix) and not name.endswith("num_batches_tracked"):
            keep = not tensor.is_floating_point() or ".running_" in name or name.startswith("bn.")
            tensors[name.removeprefix(prefix)] = (tensor if keep else tensor.to(torch.bfloat16)).contiguous()
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="folder of the training run")
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder to write (default: the package's own)")
    arguments = parser.parse_args()
    for path in export(arguments.run, arguments.out):
        print(f"{path} {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
