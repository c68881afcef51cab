"""Random weights of exactly klein-4B's shapes, in any layout: what speed, memory and loading are measured with.

    python benchmarks/random_weights.py OUT --layout bfl|diffusers|comfyui|gguf [--variant klein-4b|tiny]
                                            [--dtype bfloat16|float16|float32|q8_0] [--json]

Written tensor by tensor, so that memory holds one at a time; klein-4B takes 16 GB of disk in bfloat16. The text encoder
has all its layers, as the official file has. A tensor's numbers follow from its name alone: every layout holds the same
model. The scales keep signals finite: matrices are normal with a deviation of 1/sqrt(inputs), norms are one, biases zero,
BatchNorm statistics zero and one. Pictures made with them are noise.

The tokenizer is a stand-in: nano's, padded to the length of the model's texts (512 tokens for klein-4B). In the layout
`gguf` the transformer alone is a GGUF file, as usual; q8_0 is for it, the rest is bfloat16 then.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SOURCE = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(SOURCE))  # a machine that measures may have the checkout and no installation

from kleinbild.model import official
from kleinbild.model.spec import AutoencoderSpec, ModelSpec, TextEncoderSpec, TransformerSpec
from kleinbild.model.weights import configs
from kleinbild.model.weights.convert import from_ours
from kleinbild.model.weights.layouts import (
    COMFYUI_PREFIX,
    Shape,
    Source,
    Sources,
    diffusers_autoencoder,
    diffusers_transformer,
    same_names,
)
from kleinbild.model.weights.settings import SETTINGS_FILE, Settings, write_settings
from kleinbild.model.weights.shapes import autoencoder_shapes, text_encoder_shapes, transformer_shapes
from kleinbild.model.weights.variants import MODEL_INDEX

LAYOUTS = ("bfl", "diffusers", "comfyui", "gguf")
PARTS = ("transformer", "text_encoder", "autoencoder")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
TOKENIZER = SOURCE / "kleinbild" / "nano" / "weights" / "tokenizer"
COUNTER = "bn.num_batches_tracked"  # BatchNorm's: official autoencoders hold it, nothing reads it


@dataclass(frozen=True)
class Variant:
    """A model's numbers and, unless they are the official ones, its settings."""

    name: str
    spec: ModelSpec
    settings: Settings
    official: bool = False


KLEIN_4B = Variant("flux-2-klein-4b", official.KLEIN_4B, Settings(), official=True)
TINY_SETTINGS = Settings(
    text_layers=(1, 2, 3), max_text_tokens=64, default_size=64, min_side=32, max_side=256, num_groups=4
)
TINY = Variant(
    "tiny",
    ModelSpec(
        TransformerSpec(
            hidden_size=64,
            num_heads=2,
            num_double_blocks=1,
            num_single_blocks=2,
            context_size=192,
            rope_axes=(8, 8, 8, 8),
        ),
        TextEncoderSpec(
            hidden_size=64,
            num_layers=5,
            num_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            mlp_size=128,
            vocab_size=2048,  # more than nano's tokenizer has words
            layers=TINY_SETTINGS.text_layers,
            max_tokens=TINY_SETTINGS.max_text_tokens,
        ),
        AutoencoderSpec(base_channels=8, num_res_blocks=1, num_groups=TINY_SETTINGS.num_groups),
        default_size=TINY_SETTINGS.default_size,
    ),
    TINY_SETTINGS,
)
VARIANTS = {"klein-4b": KLEIN_4B, "tiny": TINY}


def draw(name: str, shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The numbers of our tensor `name`: the same in every layout on a kind of device."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if name == COUNTER:
        return tensor.zero_()
    if len(shape) == 1:
        return tensor.fill_(0.0 if name.endswith(("bias", "running_mean")) else 1.0)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return tensor.normal_(std=1 / math.sqrt(math.prod(shape[1:])), generator=generator)


def write_model(
    folder: Path, layout: str, variant: Variant, dtype: str = "bfloat16", parts: tuple[str, ...] = PARTS
) -> Path:
    """The `parts` of a model in a new folder, and with all of them what else belongs to it."""
    folder.mkdir(parents=True, exist_ok=True)
    spec, number_type = variant.spec, DTYPES.get(dtype, torch.bfloat16)
    places = {part: folder / place for part, place in files(layout, variant.name, dtype).items()}
    shapes = {
        "transformer": transformer_shapes(spec.transformer),
        "text_encoder": text_encoder_shapes(spec.text_encoder, spec.text_encoder.num_layers)
        | {"model.norm.weight": (spec.text_encoder.hidden_size,)},
        "autoencoder": autoencoder_shapes(spec.autoencoder) | {COUNTER: ()},
    }
    for part in parts:
        sources = names(part, layout, spec, shapes[part])
        places[part].parent.mkdir(parents=True, exist_ok=True)
        if places[part].suffix == ".gguf":
            write_gguf(places[part], shapes[part], dtype)
        else:
            write_safetensors(places[part], shapes[part], sources, number_type)
    if set(parts) == set(PARTS):
        write_tokenizer(folder / "tokenizer", spec.text_encoder.max_tokens)
        if layout == "diffusers":
            write_configs(folder, variant, dtype)
        if not variant.official:
            write_settings(folder / SETTINGS_FILE, variant.settings)
    return folder


def files(layout: str, name: str, dtype: str) -> dict[str, str]:
    """Where each part lies in a layout's folder."""
    if layout == "diffusers":
        return {
            "transformer": f"transformer/{configs.DIFFUSERS_FILE}",
            "text_encoder": "text_encoder/model.safetensors",
            "autoencoder": f"vae/{configs.DIFFUSERS_FILE}",
        }
    if layout == "comfyui":
        return {
            "transformer": f"diffusion_models/{name}.safetensors",
            "text_encoder": "text_encoders/qwen_3_4b.safetensors",
            "autoencoder": "vae/flux2-vae.safetensors",
        }
    return {
        "transformer": f"{name}-{dtype}.gguf" if layout == "gguf" else f"{name}.safetensors",
        "text_encoder": "text_encoder/model.safetensors",
        "autoencoder": "ae.safetensors",
    }


def names(part: str, layout: str, spec: ModelSpec, shapes: Mapping[str, Shape]) -> Sources:
    """How the part's tensors are stored in a layout."""
    if layout == "diffusers" and part == "transformer":
        return diffusers_transformer(spec.transformer)
    if layout == "diffusers" and part == "autoencoder":
        return diffusers_autoencoder(spec.autoencoder) | {COUNTER: Source((COUNTER,))}
    if layout == "comfyui" and part == "transformer":
        return {name: Source((COMFYUI_PREFIX + name,)) for name in shapes}
    return same_names(shapes)


def write_safetensors(path: Path, shapes: Mapping[str, Shape], sources: Sources, dtype: torch.dtype) -> None:
    """The header follows from the shapes, so that tensors can be drawn and written one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for ours, source in sources.items():
        for name in source.names:
            shape, kind = source.stored_shape(shapes[ours]), type_of(ours, dtype)
            begin, end = end, end + math.prod(shape) * kind.itemsize
            header[name] = {"dtype": SAFETENSORS_NAMES[kind], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for ours, source in sources.items():
            stored = from_ours(source, draw(ours, shapes[ours], type_of(ours, dtype)))
            for name in source.names:
                as_bytes(stored[name]).tofile(file)


def type_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if name == COUNTER else dtype


def as_bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def write_gguf(path: Path, shapes: Mapping[str, Shape], dtype: str) -> None:
    """Matrices of type `dtype` and vectors in float32, as the usual converters do."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    kind = {"bfloat16": kinds.BF16, "float16": kinds.F16, "float32": kinds.F32, "q8_0": kinds.Q8_0}[dtype]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, arch="flux")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, shape in shapes.items():
        stored = (*shape[:-1], shape[-1] // block * block_bytes) if len(shape) > 1 else (4 * shape[0],)
        raw = kind if len(shape) > 1 else kinds.F32
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        is_plain = len(shape) == 1 or dtype in DTYPES
        tensor = draw(name, shape, torch.float32 if len(shape) == 1 else DTYPES.get(dtype, torch.bfloat16))
        writer.write_tensor_data(as_bytes(tensor) if is_plain else gguf.quants.quantize(tensor.float().numpy(), kind))
    writer.close()


def write_tokenizer(folder: Path, max_tokens: int) -> None:
    """nano's tokenizer as a stand-in."""
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text("utf-8")) | {"model_max_length": max_tokens})


def write_configs(folder: Path, variant: Variant, dtype: str) -> None:
    """What diffusers and transformers need beside the weights."""
    spec, text = variant.spec, variant.spec.text_encoder
    transformer = {"_class_name": "Flux2Transformer2DModel", **configs.transformer_config(spec.transformer)}
    write_json(folder / "transformer" / "config.json", transformer)
    autoencoder = {"_class_name": "AutoencoderKLFlux2", **configs.autoencoder_config(spec.autoencoder)}
    write_json(folder / "vae" / "config.json", autoencoder)
    write_json(folder / "text_encoder" / "config.json", configs.text_encoder_config(text, text.num_layers, dtype))
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", configs.SCHEDULER)
    write_json(folder / MODEL_INDEX, configs.model_index(variant.settings, "PreTrainedTokenizerFast"))


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def weight_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".gguf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--variant", choices=VARIANTS, default="klein-4b")
    parser.add_argument("--dtype", choices=[*DTYPES, "q8_0"], default="bfloat16")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    if arguments.dtype == "q8_0" and arguments.layout != "gguf":
        parser.error("q8_0 is a type of GGUF files; take --layout gguf")
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} is not empty; name a new folder")
    started = time.perf_counter()
    write_model(arguments.out, arguments.layout, VARIANTS[arguments.variant], arguments.dtype)
    seconds = time.perf_counter() - started
    sizes = {str(path.relative_to(arguments.out)): path.stat().st_size / 1e9 for path in weight_files(arguments.out)}
    for name, gigabytes in sizes.items():
        print(f"{name:60} {gigabytes:9.4f} GB")
    print(f"tokenizer: nano's, as a stand-in\n{sum(sizes.values()):.3f} GB in {seconds:.1f} s")
    print(f"kleinbild models check {arguments.out}")
    if arguments.json:
        print(json.dumps({"seconds": round(seconds, 3), "gigabytes": sizes}))


if __name__ == "__main__":
    main()
