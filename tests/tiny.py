"""A tiny model with random weights, in memory and on disk: what tests use where real weights would be too much.

Networks are made once and shared: nothing may change their weights. The numbers differ from each other on purpose
(fewer key-value heads than heads, levels of different widths, a text encoder longer than needed), and the weights are
large enough that every path through the networks matters.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.spec import AutoencoderSpec, ModelSpec, TextEncoderSpec, TransformerSpec
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights import Settings

SETTINGS = Settings(
    text_layers=(1, 2, 4),
    max_text_tokens=40,
    default_size=64,
    min_side=32,
    max_side=256,
    max_pixels=256 * 256,
    num_groups=4,
)
SPEC = ModelSpec(
    transformer=TransformerSpec(
        hidden_size=64, num_heads=4, num_double_blocks=2, num_single_blocks=3, context_size=72, rope_axes=(4, 4, 4, 4)
    ),
    text_encoder=TextEncoderSpec(
        hidden_size=24,
        num_layers=5,
        num_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        mlp_size=40,
        vocab_size=300,
        layers=SETTINGS.text_layers,
        max_tokens=SETTINGS.max_text_tokens,
    ),
    autoencoder=AutoencoderSpec(
        base_channels=8, channel_multipliers=(1, 2, 4, 4), num_res_blocks=1, num_groups=SETTINGS.num_groups
    ),
    default_size=64,
)
SENTENCES = ("a red cat on a beach", "two blue dogs, left and right", "remove the hat", "image 1 on image 2")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>' }}{% endif %}{% endif %}"
)


def randomize(network: nn.Module, seed: int) -> nn.Module:
    """Fills all weights so that signals neither die nor explode, scales and statistics away from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith("running_mean"):
                normal(tensor, 0.0, 0.5)
            elif "inv_freq" in name or not tensor.is_floating_point():
                continue
            elif tensor.ndim == 1:
                normal(tensor, 0.0 if name.endswith("bias") else 1.0, 0.2)
            else:
                normal(tensor, 0.0, 1.2 * tensor[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


@cache
def transformer(seed: int = 1, spec: TransformerSpec = SPEC.transformer) -> Flux2Transformer:
    network = Flux2Transformer(spec)
    randomize(network, seed)
    return network


@cache
def text_encoder(seed: int = 2, spec: TextEncoderSpec = SPEC.text_encoder) -> TextEncoder:
    network = TextEncoder(spec)
    randomize(network, seed)
    return network


@cache
def autoencoder(seed: int = 3, spec: AutoencoderSpec = SPEC.autoencoder) -> Autoencoder:
    network = Autoencoder(spec)
    randomize(network, seed)
    return network


@cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE with a normalizer of its own, as nano's: lower case, no closing punctuation."""
    built = Tokenizer(models.BPE())
    built.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[.!?\s]+$"), "")]
    )
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=SPEC.text_encoder.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(SENTENCES, trainer)
    return built


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "padding_side": "right",
        "model_max_length": SPEC.text_encoder.max_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return folder


def write_model(
    folder: Path, name: str = "tiny", settings: Settings = SETTINGS, dtype: torch.dtype = torch.float32
) -> Path:
    """All parts in the way that nano is packaged: a transformer file, its settings, and the shared parts beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, network in ((name, transformer()), ("text_encoder", text_encoder()), ("autoencoder", autoencoder())):
        write_state(folder / f"{file}.safetensors", network.state_dict(), dtype)
    write_tokenizer(folder / "tokenizer")
    (folder / f"{name}.json").write_text(json.dumps(settings.to_json()), "utf-8")
    return folder / f"{name}.safetensors"


def write_gguf(path: Path, state: dict[str, Tensor], kinds: dict[str, gguf.GGMLQuantizationType]) -> Path:
    """A GGUF file as the usual converters write it: each tensor of `kinds` quantized so, all others F32."""
    writer = gguf.GGUFWriter(path, arch="flux")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for name, tensor in state.items():
        kind = kinds.get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_state(path: Path, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
    """A safetensors file; whole numbers (BatchNorm's counter) are left out."""
    floats = {name: t.to(dtype).contiguous() for name, t in state.items() if t.is_floating_point()}
    save_file(floats, path)
    return path
