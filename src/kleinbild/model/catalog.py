"""The models that are known by name, and where their weights are on this machine.

No torch and no network here: the command line lists models in milliseconds. A model is looked for in the package
(nano), then in Kleinbild's own folder, then in the hub's cache, where other programs may have fetched it already.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from kleinbild.core.errors import UnknownModelError
from kleinbild.core.home import home
from kleinbild.model.weights.settings import Variant
from kleinbild.model.weights.specs import Family


@dataclass(frozen=True, slots=True)
class Entry:
    """One known model. `size_bytes` and `num_parameters` count all its networks; None where the file itself tells."""

    name: str
    family: Family
    variant: Variant
    title: str
    licence: str
    licence_url: str
    size_bytes: int | None = None
    num_parameters: int | None = None
    repo: str | None = None

    @property
    def packaged(self) -> bool:
        """Whether the weights come with Kleinbild."""
        return self.repo is None


PACKAGED = Path(__file__).parent.parent / "nano" / "weights"
APACHE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
NON_COMMERCIAL = "FLUX Non-Commercial License"

# Sizes in bfloat16. 4B: transformer 3.88, Qwen3-4B 4.02, autoencoder 0.08 billion parameters; 9B: 9.08, 8.19, 0.08.
SIZE_4B, SIZE_9B = (16_100_000_000, 7_980_000_000), (34_700_000_000, 17_350_000_000)


def _klein(name: str, family: Family, variant: Variant, title: str, repo: str) -> Entry:
    size, parameters = SIZE_4B if family == "klein-4b" else SIZE_9B
    page = f"https://huggingface.co/{repo}"
    licence, url = APACHE if family == "klein-4b" else (NON_COMMERCIAL, page)
    return Entry(name, family, variant, title, licence, url, size, parameters, repo)


ENTRIES = (
    Entry("nano", "nano", "distilled", "a toy world, 4 steps; in the package", *APACHE),
    Entry("nano-base", "nano", "base", "a toy world, many steps with guidance; in the package", *APACHE),
    _klein("klein-4b", "klein-4b", "distilled", "4 steps", "black-forest-labs/FLUX.2-klein-4B"),
    _klein("klein-base-4b", "klein-4b", "base", "50 steps with guidance", "black-forest-labs/FLUX.2-klein-base-4B"),
    _klein("klein-9b", "klein-9b", "distilled", "4 steps", "black-forest-labs/FLUX.2-klein-9B"),
    _klein("klein-base-9b", "klein-9b", "base", "50 steps with guidance", "black-forest-labs/FLUX.2-klein-base-9B"),
    _klein("klein-9b-kv", "klein-9b", "kv", "4 steps, fast edits", "black-forest-labs/FLUX.2-klein-9b-kv"),
)


def entries() -> tuple[Entry, ...]:
    return ENTRIES


def find(name: str) -> Entry:
    """The model called `name`, in any case. Raises UnknownModelError, which lists the known ones."""
    for entry in ENTRIES:
        if entry.name == name.lower():
            return entry
    known = [entry.name for entry in ENTRIES]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise UnknownModelError(
        f"there is no model called {name!r}; known are {', '.join(known)}",
        f"{guess}A path to a weight file or folder works too.".strip(),
    )


def find_variant(family: str | None, variant: Variant) -> Entry | None:
    """The known model of a family that is of this kind; None for a family of somebody's own, or where there is none."""
    return next((entry for entry in ENTRIES if entry.family == family and entry.variant == variant), None)


def models_folder() -> Path:
    """Where Kleinbild keeps models: `$KLEINBILD_HOME/models`, by default `~/.kleinbild/models`."""
    return home() / "models"


def locate(entry: Entry) -> Path | None:
    """The file or folder with the weights of `entry` on this machine, or None. Looks for files, not into weights."""
    return next((path for path in places(entry) if _is_whole(path)), None)


def places(entry: Entry) -> tuple[Path, ...]:
    """Where `locate` looks, in this order."""
    if entry.repo is None:
        return (PACKAGED / f"{entry.name}.safetensors",)
    cached = _hub_cache() / f"models--{entry.repo.replace('/', '--')}"
    return (models_folder() / entry.name, *_snapshots(cached))


def _is_whole(path: Path) -> bool:
    if path.is_file():
        return True
    return (
        (path / "model_index.json").is_file()
        and (path / "tokenizer" / "tokenizer.json").is_file()
        and all(_has_weights(path / network) for network in ("transformer", "text_encoder", "vae"))
    )


def _has_weights(folder: Path) -> bool:
    """Whether all weight files are there: those that an index names, else any. The hub's cache may hold a few only."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return False
        return all((folder / name).is_file() for name in names)
    return any(folder.glob("*.safetensors"))


def _hub_cache() -> Path:
    """The hub client's cache, by the variables that it reads itself."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"


def _snapshots(cached: Path) -> list[Path]:
    """The snapshot that `main` points to."""
    main = cached / "refs" / "main"
    return [cached / "snapshots" / main.read_text("utf-8").strip()] if main.is_file() else []
