"""Latents and contexts on disk, each computed once, whatever run asks for it; and a data set read from there.

    prepare      looks at every picture, encodes what is not there yet, keeps it
    Encodings    gives `Encoded` samples, reading from disk; nothing of the model is needed any more

A file is named by all that what it holds depends on: the picture's or the caption's own content, the network that encodes
it, and how it was handed to it. So nothing is ever out of date, and runs, models and data sets share a folder. Files are
moved to their places when they are whole; one that is damaged is made anew.

Shape suffixes: N tokens of a picture, K tokens of a reference, C channels, L text tokens, X context width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from PIL import Image
from torch import Tensor

from kleinbild.core.home import home
from kleinbild.engine.caches import TensorCache
from kleinbild.engine.files import read_file
from kleinbild.engine.references import fitted, open_alpha
from kleinbild.model.weights import Model
from kleinbild.train.data.buckets import Framing, Placed, View, check_mask, fit_free, place, views
from kleinbild.train.data.encoding import encode_caption, encode_target, grid_of, tokenize, weights_of
from kleinbild.train.data.examples import Dataset, Example
from kleinbild.train.data.folders import counted, named
from kleinbild.train.data.kept import Keys, Kind, is_whole, keep, load, place_of
from kleinbild.train.data.pictures import Seen, in_order, look, open_upright

KEPT_BYTES = 2 * 2**30

Grid = tuple[int, int]
Progress = Callable[[str, int, int], None]
"""What is being done, how many of it are done, of how many."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One example as the transformer takes it. `weights_N1` is how much each token counts; None: all alike.

    `contexts` (L, X) are those of its captions. `grid` and those of the references are (rows, columns) of tokens.
    """

    example: Example
    target_NC: Tensor
    grid: Grid
    references: tuple[tuple[Tensor, Grid], ...]
    contexts: tuple[Tensor, ...]
    weights_N1: Tensor | None


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the tensors of one view are, and what it will be when they are read."""

    example: Example
    grid: Grid
    target: Path
    references: tuple[tuple[Path, Grid], ...]
    contexts: tuple[Path, ...]
    weights: Path | None

    @property
    def shape(self) -> tuple[Grid, tuple[Grid, ...]]:
        """What two samples must have in common to be equally large."""
        return self.grid, tuple(grid for _, grid in self.references)

    @property
    def num_stream(self) -> int:
        """Tokens of its picture and its references."""
        return sum(rows * columns for rows, columns in (self.grid, *self.shape[1]))


class Encodings(Sequence[Encoded]):
    """The samples of a data set, read as they are asked for; at most `kept_bytes` of them stay in memory."""

    def __init__(
        self,
        entries: Sequence[Entry],
        contexts: Mapping[str, Path],
        notes: tuple[str, ...],
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.entries, self.notes = tuple(entries), notes
        self._contexts = dict(contexts)
        self._kept = TensorCache(kept_bytes)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def repeats(self) -> tuple[int, ...]:
        return tuple(entry.example.repeats for entry in self.entries)

    def __getitem__(self, index: int) -> Encoded:  # type: ignore[override]  # slices have no use here
        entry = self.entries[index]
        return Encoded(
            example=entry.example,
            target_NC=self._read(entry.target),
            grid=entry.grid,
            references=tuple((self._read(path), grid) for path, grid in entry.references),
            contexts=tuple(map(self._read, entry.contexts)),
            weights_N1=None if entry.weights is None else self._read(entry.weights),
        )

    def only(self, wanted: Sequence[bool]) -> Encodings:
        """Those of its samples that are wanted; what is read is kept in memory for both."""
        some = copy(self)
        some.entries = tuple(compress(self.entries, wanted))
        return some

    def context(self, text: str = "") -> Tensor:
        """The context (L, X) of a caption of the data set, or of another text that was prepared; "" always is."""
        return self._read(self._contexts[text])

    def _read(self, path: Path) -> Tensor:
        return self._kept.get(path, lambda: load(path))


def prepare(
    model: Model,
    dataset: Dataset,
    framing: Framing,
    *,
    folder: Path | None = None,
    texts: Iterable[str] = (),
    progress: Progress | None = None,
) -> Encodings:
    """Encodes what is not in `folder` yet (by default one that all runs share). `texts` are prepared beside the captions.

    Afterwards text encoder and autoencoder are not needed any more. Raises PictureError that names every picture which
    cannot be used, and PromptError for a caption that is too long, both before anything is encoded.
    """
    told = progress or _untold
    folder = folder or home() / "training" / "encoded"
    keys = Keys.of(model)
    files = [file for example in dataset.examples for file in example.files]
    seen = look(
        files, memory=folder / "pictures.json", progress=lambda done, total: told("looking at pictures", done, total)
    ).require_whole()
    found, notes = views(dataset.examples, seen, framing)
    contexts = _prepare_contexts(model, dataset, texts, folder, keys, told)
    works: dict[Path, _Work] = {}
    entries = [_entry(view, seen, framing, folder, keys, contexts, works) for view in found]
    _make(model, [work for path, work in works.items() if not is_whole(path)], told)
    return Encodings(entries, contexts, (*notes, *_about_transparency(dataset, seen)))


@dataclass(frozen=True, slots=True)
class _Work:
    """A file to be made of a picture: a latent, or the weights of a mask."""

    path: Path
    source: Path
    kind: Kind
    placed: Placed | None
    grid: Grid
    framing: Framing
    alpha: bool = False


def _prepare_contexts(
    model: Model, dataset: Dataset, texts: Iterable[str], folder: Path, keys: Keys, told: Progress
) -> dict[str, Path]:
    names = {"": "the empty prompt"} | {text: f"the text {text[:40]!r}" for text in texts}
    for example in dataset.examples:
        for caption in example.captions:
            names.setdefault(caption, example.name)
    tokens = {caption: tokenize(model, caption, name) for caption, name in names.items()}
    paths = {
        caption: place_of(folder, "contexts", keys.of_caption(each.ids.tolist(), each.mask.tolist()))
        for caption, each in tokens.items()
    }
    missing = [caption for caption, path in paths.items() if not is_whole(path)]
    for done, caption in enumerate(missing, 1):
        keep(paths[caption], encode_caption(model, tokens[caption]))
        told("encoding captions", done, len(missing))
    return paths


def _entry(
    view: View,
    seen: Mapping[Path, Seen],
    framing: Framing,
    folder: Path,
    keys: Keys,
    contexts: Mapping[str, Path],
    works: dict[Path, _Work],
) -> Entry:
    """The view's files; what has to be made for them goes into `works`."""
    example = view.example

    def latent(source: Path, placed: Placed | None) -> tuple[Path, Grid]:
        made = placed.made if placed else fitted(seen[source].size, framing.free_sizes)
        key = keys.of_picture(seen[source].sha256, made, placed.box if placed else None)
        path, grid = place_of(folder, "latents", key), grid_of(made, framing.sizes.multiple)
        works.setdefault(path, _Work(path, source, "latents", placed, grid, framing))
        return path, grid

    target, grid = latent(example.target, view.target)
    references = tuple(
        latent(source, placed) for source, placed in zip(example.references, view.references, strict=True)
    )
    alpha = example.mask is None and framing.alpha_masks and seen[example.target].transparent
    mask = example.target if alpha else example.mask
    weights = None
    if mask is not None:
        check_mask(seen[mask], seen[example.target], example.name)
        placed = place(seen[mask].size, view.target.made)
        weights = place_of(folder, "weights", keys.of_mask(seen[mask].sha256, placed, alpha=alpha))
        works.setdefault(weights, _Work(weights, mask, "weights", placed, grid, framing, alpha))
    return Entry(example, grid, target, references, tuple(contexts[each] for each in example.captions), weights)


def _make(model: Model, works: list[_Work], told: Progress) -> None:
    """Pictures are opened and fitted in threads, a few ahead; the networks work here."""
    for done, (work, image) in enumerate(zip(works, in_order(_fit, works), strict=True), 1):
        tensor = weights_of(image, work.grid) if work.kind == "weights" else encode_target(model, image)
        keep(work.path, tensor)
        told("encoding pictures", done, len(works))


def _fit(work: _Work) -> Image.Image:
    image = open_alpha(read_file(work.source), str(work.source)) if work.alpha else open_upright(work.source)
    return work.placed(image) if work.placed else fit_free(image, str(work.source), work.framing)


def _untold(what: str, done: int, total: int) -> None:
    """For nobody."""


def _about_transparency(dataset: Dataset, seen: Mapping[Path, Seen]) -> Iterator[str]:
    names = [example.name for example in dataset.examples if seen[example.target].transparent]
    if names:
        yield f"{counted(len(names), 'picture')} partly transparent, put on white: {named(names)}"
