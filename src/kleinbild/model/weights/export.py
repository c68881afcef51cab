"""A model as a diffusers folder, which `Flux2KleinPipeline.from_pretrained` loads and Kleinbild loads again.

The folder gives the same pictures there as here, if the pipeline is told what it cannot read from it:
`max_sequence_length` and `text_encoder_out_layers`, which stand in `kleinbild.json`. It is written under a temporary
name and moved when it is whole.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from kleinbild.core.errors import OutputError
from kleinbild.model import catalog
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.weights.configs import (
    DIFFUSERS_FILE,
    SCHEDULER,
    autoencoder_config,
    model_index,
    text_encoder_config,
    transformer_config,
)
from kleinbild.model.weights.convert import convert_from_ours
from kleinbild.model.weights.layouts import diffusers_autoencoder, diffusers_transformer
from kleinbild.model.weights.load import Model, load_model
from kleinbild.model.weights.settings import SETTINGS_FILE, write_settings
from kleinbild.model.weights.shapes import text_encoder_shapes
from kleinbild.model.weights.sources import find_parts, resolve
from kleinbild.model.weights.variants import MODEL_INDEX, read_json


def export_diffusers(model_name: str, folder: Path, *, precision: Literal["float32", "bfloat16"] | None = None) -> Path:
    """Writes the model to `folder`, which must be new or empty, in float32 or bfloat16: by default the type that
    it is run in.

    The text encoder is written as far as it is needed. Raises OutputError where the folder cannot be written.
    """
    entry, path = resolve(model_name)
    model = load_model(model_name, precision=precision)
    tokenizer = find_parts(path, entry.variant if entry else None).tokenizer
    assert tokenizer is not None  # the model is loaded
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} is there already and not empty", "name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            written = Path(temporary) / "model"
            _write(model, entry, tokenizer, written)
            written.replace(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}", "name another folder") from error
    return folder


def qwen3_state(encoder: TextEncoder) -> dict[str, Tensor]:
    """The text encoder as a `Qwen3ForCausalLM` with one layer more than needed, head tied to the embedding.

    transformers returns the last layer's state after the final norm, and the pipeline takes raw states: so the last one
    taken must not be the last layer's. The layer on top adds nothing (all its projections are zero).
    """
    spec, state = encoder.spec, dict(encoder.state_dict())
    embedding = state["model.embed_tokens.weight"]
    for name, shape in text_encoder_shapes(spec, spec.num_layers_needed + 1).items():
        if name not in state:
            state[name] = (embedding.new_ones if len(shape) == 1 else embedding.new_zeros)(shape)
    state["model.norm.weight"] = embedding.new_ones(spec.hidden_size)
    return state


def _write(model: Model, entry: catalog.Entry | None, tokenizer: Path, folder: Path) -> None:
    spec = model.spec
    transformer = convert_from_ours(diffusers_transformer(spec.transformer), model.transformer.state_dict())
    _write_network(folder / "transformer", "Flux2Transformer2DModel", transformer_config(spec.transformer), transformer)
    autoencoder = convert_from_ours(diffusers_autoencoder(spec.autoencoder), model.autoencoder.state_dict())
    autoencoder["bn.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    _write_network(folder / "vae", "AutoencoderKLFlux2", autoencoder_config(spec.autoencoder), autoencoder)
    _write_text_encoder(folder / "text_encoder", model.text_encoder)
    shutil.copytree(tokenizer, folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    tokenizer_class = read_json(tokenizer / "tokenizer_config.json").get("tokenizer_class", "Qwen2TokenizerFast")
    _write_json(folder / MODEL_INDEX, model_index(model.settings, tokenizer_class))
    write_settings(folder / SETTINGS_FILE, model.settings)
    (folder / "README.md").write_text(_readme(model, entry), "utf-8")


def _write_network(folder: Path, class_name: str, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", {"_class_name": class_name, **config})
    _save(state, folder / DIFFUSERS_FILE)


def _write_text_encoder(folder: Path, encoder: TextEncoder) -> None:
    folder.mkdir()
    dtype = str(next(encoder.parameters()).dtype).removeprefix("torch.")
    num_layers = encoder.spec.num_layers_needed + 1  # as many as `qwen3_state` holds
    _write_json(folder / "config.json", text_encoder_config(encoder.spec, num_layers, dtype))
    _save(qwen3_state(encoder), folder / "model.safetensors")


def _save(state: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})


def _readme(model: Model, entry: catalog.Entry | None) -> str:
    settings = model.settings
    licence = f"{entry.licence}, {entry.licence_url}" if entry else "that of the source"
    return f"""# {model.name}, as a diffusers folder

Written by Kleinbild. Licence of the weights: {licence}.

```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{model.name}")  # the path of this folder
picture = pipeline(
    prompt="...",
    height={settings.default_size},
    width={settings.default_size},
    num_inference_steps={settings.default_steps},
    max_sequence_length={settings.max_text_tokens},
    text_encoder_out_layers={settings.text_layers},
    generator=torch.Generator().manual_seed(0),
).images[0]
```
"""


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
