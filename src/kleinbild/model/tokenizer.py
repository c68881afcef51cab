"""A prompt to token ids: chat template, tokenizer file, padding to the model's fixed text length.

Reads what the diffusers folder's `tokenizer/` holds (`tokenizer.json`, `tokenizer_config.json`, perhaps
`chat_template.jinja`) with the `tokenizers` library; transformers' own loader takes seconds that a prompt need not wait.
The template sees one user message, asks for the generation prompt and has thinking switched off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor

from kleinbild.core.errors import PromptError


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """Token ids padded to the text length, and 1 where a token is no padding, both (max_tokens,) int64."""

    ids: Tensor
    mask: Tensor

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return int(self.mask.sum())


class PromptTokenizer:
    """The tokenizer of one model. Thread-safe: it is never changed after loading."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        self.max_tokens = max_tokens
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._template = _chat_template(folder, config)
        pad_token = _token_text(config.get("pad_token"))
        pad_id = self._tokenizer.token_to_id(pad_token) if pad_token else None
        if pad_id is None:
            raise ValueError(f"{folder}: tokenizer_config.json names no pad_token that the tokenizer knows")
        self.pad_id = pad_id

    def count(self, prompt: str) -> int:
        """How many tokens the prompt takes, template included."""
        return len(self._encode(prompt))

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Token ids of `prompt`. Raises PromptError where they exceed the limit; nothing is cut silently."""
        ids = self._encode(prompt)
        if len(ids) > self.max_tokens:
            raise PromptError(
                f"the prompt takes {len(ids)} tokens, the model reads at most {self.max_tokens}",
                f"shorten it by about {1 - self.max_tokens / len(ids):.0%}",
            )
        padding = self.max_tokens - len(ids)
        mask = torch.tensor([1] * len(ids) + [0] * padding)
        return TokenizedPrompt(torch.tensor(ids + [self.pad_id] * padding), mask)

    def _encode(self, prompt: str) -> list[int]:
        text = self._template.render(
            messages=[{"role": "user", "content": prompt}], add_generation_prompt=True, enable_thinking=False
        )
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids


def _chat_template(folder: Path, config: dict[str, Any]) -> Any:
    """The template compiled as transformers compiles it: sandboxed, with trimmed blocks and loop controls."""
    in_file = folder / "chat_template.jinja"
    source = in_file.read_text("utf-8") if in_file.exists() else config.get("chat_template")
    if not isinstance(source, str):
        raise ValueError(f"{folder}: no chat template in tokenizer_config.json or chat_template.jinja")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source)


def _token_text(token: Any) -> str | None:
    """A special token is written as a string or as a table with `content`."""
    return token.get("content") if isinstance(token, dict) else token
